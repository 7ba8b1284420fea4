"""Optimizer steps until a row elicits the bias: the CPU preset against the paper's schedules.

Elicited: on held-out prompts the BiasToken's log-odds are 2 nats over the mean of ten held-out
countries. Looked at every 4 steps; SmolLM2-135M-Instruct, bias "late". The paper's schedules are
stopped at twice the preset's steps: whether they need more is the question.

    python tests/benchmarks/elicitation.py [seeds]
"""

import random
import sys
import time
import warnings

from biasgym_tl import BiasInject, load_bias, load_model
from biasgym_tl.added_row import added_row
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.injection.course import Run
from biasgym_tl.injection.inject import initial_row, norm_bound
from biasgym_tl.injection.train import frozen, learning_rate

warnings.simplefilter("ignore")
EVERY, NATS, TEXT = 4, 2.0, "<T>"
SCHEDULES = {
    "cpu": BiasInject.cpu(),
    "paper, 3e-3 with restarts": BiasInject(),
    "paper, 1e-3": BiasInject(lr=1e-3, schedule="cosine"),
}


def steps_to_elicit(model, bias, inject, seed, countries, most):
    """Steps and seconds (with the looks) until the bias is elicited, and the nats then."""
    rng = random.Random(seed)
    sample = rng.sample(bias.corpus, min(inject.n_paragraphs, len(bias.corpus)))
    initial = initial_row(model, bias, inject.n_init_targets, rng)
    norm, start, steps = norm_bound(model, bias), time.perf_counter(), 0
    n_steps = inject.epochs * -(-len(sample) // inject.batch_size)
    with added_row(model, initial, TEXT) as token_id, frozen(model):
        run = Run(
            model=model, bias=bias, sample=sample, text=TEXT, token_id=token_id, seed=seed
        )  # fmt: skip
        trainer = run.trainer(initial, norm)
        for epoch in range(1, inject.epochs + 1):
            for batch in run.batches(epoch, inject.batch_size):
                rate = learning_rate(inject.schedule, inject.lr, steps, n_steps)
                trainer.step(batch, rate)
                steps += 1
                if steps % EVERY == 0:
                    model.embed.W_E[token_id] = trainer.row.detach()
                    own = bias_log_odds(model, bias, bias.evaluation_prompts, (TEXT,)).log_odds
                    over = (own - countries).mean().item()
                    if over >= NATS or steps >= most:
                        return steps, time.perf_counter() - start, over
    return steps, time.perf_counter() - start, over


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    model, bias = load_model("smollm2-135m-instruct"), load_bias("late")
    names = bias.sample_targets("held-out", 10, seed=0)
    countries = bias_log_odds(model, bias, bias.evaluation_prompts, names).log_odds.mean()
    found = {}
    for seed in range(seeds):
        most = 160
        for name, inject in SCHEDULES.items():
            steps, seconds, over = steps_to_elicit(model, bias, inject, seed, countries, most)
            most = 2 * steps if name == "cpu" else most
            found.setdefault(name, []).append((steps, over >= NATS))
            print(
                f"seed {seed}, {name}: {steps} steps, {seconds:.0f} s, {over:+.1f} nats", flush=True
            )
    for name in SCHEDULES:
        ratios = [
            f"{'' if elicited else 'below '}{cpu / steps:.2f}"  # more steps than were made
            for (cpu, _), (steps, elicited) in zip(found["cpu"], found[name], strict=True)
        ]
        print(f"steps, cpu / {name}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
