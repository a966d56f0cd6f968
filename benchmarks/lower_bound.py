"""A lower bound of the time of a training step on this machine: its products, each alone, and a pass over its update.

A step of any implementation multiplies the same matrices and updates the same parameters. So the products of one plain
step are recorded, and each is timed alone on operands of its own shapes, in whichever of the usual layouts is faster;
what the optimizer has to move is timed as one pass over as many bytes. Their sum leaves out all that could be fused,
overlapped or skipped: activations, sums of biases, the likelihood, noise, the gathering of data. Nothing is assumed of
the machine: the peak is its own, measured shape by shape.
"""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import median_seconds
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Products that write into a tensor of the caller's, by the bindings of least overhead; others allocate their result.
INTO: dict[Any, Callable[..., Tensor]] = {
    aten.mm: torch.mm,
    aten.addmm: torch.addmm,
    aten.bmm: torch.bmm,
    aten.baddbmm: torch.baddbmm,
}

# ------------------------------------------------------------------------------------- what a step multiplies


@dataclass(frozen=True)
class Operand:
    """What the time of a product depends on in a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def fresh(self, device: torch.device) -> Tensor:
        """A tensor of this kind, of random numbers, in memory that has been touched."""
        size = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(max(1, size), device=device).to(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution: its operation, its arguments with operands for tensors, and its flops."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    result: Any
    flops: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of its tensors, in the order of the arguments."""
        return tuple(a.shape for a in self.args if isinstance(a, Operand))


def record(step: Callable[[], Any]) -> Counter[Product]:
    """The products of a step, forward and backward, and how often each occurs; the step is made."""
    with _Recorder() as recorder:
        step()
    return recorder.products


class _Recorder(TorchDispatchMode):
    """Notes each product that is dispatched: what torch counts flops of."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            flops = count(*args, **kwargs, out_val=result)
            if func.overloadpacket is aten.convolution_backward:  # without the bias, whose gradient is a sum
                args = (*args[:-1], (*args[-1][:2], False))
            named = tuple((name, _described(value)) for name, value in kwargs.items())
            self.products[Product(func, _described(args), named, _described(result), flops)] += 1
        return result


def _described(value: Any) -> Any:
    """A value as something to compare and to count: tensors as operands, lists as tuples."""
    if isinstance(value, Tensor):
        return Operand(tuple(value.shape), value.stride(), value.dtype)
    return tuple(map(_described, value)) if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------- how long that takes


def product_seconds(product: Product, device: torch.device) -> float:
    """Seconds of a product alone, as recorded or, if that is faster, with its images channels last."""
    layouts = [False, True] if any(len(shape) == 4 for shape in product.shapes) else [False]
    return min(median_seconds(_call(product, device, channels_last), device) for channels_last in layouts)


def _call(product: Product, device: torch.device, channels_last: bool) -> Callable[[], Any]:
    """The product on fresh operands, as a call without arguments; its result is allocated once where that can be."""

    def filled(value: Any) -> Any:
        if isinstance(value, Operand):
            tensor = value.fresh(device)
            moved = channels_last and tensor.ndim == 4
            return tensor.contiguous(memory_format=torch.channels_last) if moved else tensor
        return list(map(filled, value)) if isinstance(value, tuple) else value

    args, kwargs = map(filled, product.args), {name: filled(value) for name, value in product.kwargs}
    into = INTO.get(product.operation.overloadpacket)
    if into is not None:
        return functools.partial(into, *args, out=filled(product.result), **kwargs)
    return functools.partial(product.operation, *args, **kwargs)


# ------------------------------------------------------------------------------------- what it moves, and the sum


def update_bytes(optimizer: Optimizer) -> int:
    """Bytes that an update moves at least: parameters and optimizer state read and written, gradients read."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    states = [s for p in parameters for s in optimizer.state[p].values() if isinstance(s, Tensor)]
    return 2 * sum(t.nbytes for t in (*parameters, *states)) + sum(p.grad.nbytes for p in parameters)


def pass_seconds(count: int, device: torch.device) -> float:
    """Seconds to move this many bytes, half read and half written back in their place, warm.

    In place as an update is, and no larger, since what fits into a cache stays there between steps. A copy would also
    fetch the lines that it overwrites, and takes longer for the same bytes than the update itself.
    """
    return median_seconds(torch.ones(max(1, count // 8), device=device).neg_, device)


@dataclass(frozen=True)
class LowerBound:
    """The least that a step has to do: its products, each so often, and the bytes that its update moves."""

    products: Counter[Product]
    bytes: int

    @property
    def flops(self) -> int:
        """Of all products."""
        return sum(count * product.flops for product, count in self.products.items())

    def seconds(self, device: torch.device) -> tuple[float, float]:
        """What the products take now, and what the memory takes; a step takes at least their sum."""
        products = sum(count * product_seconds(product, device) for product, count in self.products.items())
        return products, pass_seconds(self.bytes, device)


def lower_bound(step: Callable[[], Any], optimizer: Optimizer) -> LowerBound:
    """The lower bound of a step that updates by an optimizer; the step is made once."""
    return LowerBound(record(step), update_bytes(optimizer))
