"""Devices that this machine does not have: tensors that say they are on one, and refuse to be
computed with beside tensors of another, as CUDA's do.

Each holds a tensor of the CPU, which does the work, so that numbers are the same to the last bit.
``lazy`` is a type of device that torch knows, has nothing on, and runs a backward pass for in the
thread that asked.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = tuple(torch.device("lazy", index) for index in range(2))
CPU = torch.device("cpu")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXED |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}
MOVED = {aten._to_copy.default, aten.copy_.default, aten.copy.default}


class Pretended(Tensor):
    """A tensor on a device that is none."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Pretended:
        found = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=device,
        )  # fmt: skip
        found.inner = inner
        return found

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.device}, {self.inner!r})"

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, other: Pretended) -> None:
        Tensor.data.__set__(self, other)
        self.inner = other.inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __format__(self, form: str) -> str:
        return format(self.inner, form)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class PretendedDevices(TorchDispatchMode):
    """Context in which there are :data:`DEVICES`."""

    def __enter__(self):
        self.lifts_alone = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # so that torch.tensor asks this mode for a device
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.lifts_alone)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _is_composite(func):
        with PretendedDevices():
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    device = _device(func, args, kwargs)
    if device.type == "lazy" and device not in DEVICES:
        raise RuntimeError(f"no such device: {device}")
    if device in DEVICES and kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": CPU}
    found = func(*map(_inner, args), **{name: _inner(each) for name, each in kwargs.items()})
    if func._schema.is_mutable:  # what was written to is given back as it is
        return kwargs.get("out", args[0] if args else None)
    return _outer(found, device) if device in DEVICES else found


def _inner(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value.inner if isinstance(value, Pretended) else value


def _outer(found: Any, device: torch.device) -> Any:
    if isinstance(found, (list, tuple)):
        return type(found)(_outer(each, device) for each in found)
    if not isinstance(found, Tensor):
        return found
    with torch.inference_mode(found.is_inference()):
        return Pretended(found, device)


def _device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where an operation is done.

    Raises:
        RuntimeError: on several devices, other than with a number or indices of the CPU.
    """
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    if func in MOVED:
        return args[0].device
    given = [*_tensors(args), *_tensors([*kwargs.values()])]
    if func in INDEXED:
        free = {id(index) for index in args[1] if index is not None and index.device == CPU}
        given = [each for each in given if id(each) not in free]
    devices = {each.device for each in given}
    if len(devices) > 1:
        devices = {each.device for each in given if each.ndim or each.device != CPU}
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, got {sorted(map(str, devices))} in "
            f"{func}"
        )
    return devices.pop() if devices else CPU


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
