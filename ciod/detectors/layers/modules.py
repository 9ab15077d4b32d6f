"""Modules of PyTorch with the types that its own annotations lack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from torch import Tensor, nn

if TYPE_CHECKING:
    M = TypeVar("M", bound=nn.Module)

    class Layers(nn.ModuleList, Generic[M]):
        """A ModuleList whose modules are all of one type."""

        def __init__(self, modules: Iterable[M] = ()) -> None: ...

        def __iter__(self) -> Iterator[M]: ...

        @overload
        def __getitem__(self, idx: slice) -> Layers[M]: ...

        @overload
        def __getitem__(self, idx: int) -> M: ...

        def __getitem__(self, idx: slice | int) -> Any: ...
else:
    Layers = nn.ModuleList


class Biased(Protocol):
    """A layer that may have a bias."""

    @property
    def bias(self) -> Tensor | None: ...


def bias_of(layer: Biased) -> Tensor:
    """The bias of a layer that has one."""
    assert layer.bias is not None
    return layer.bias
