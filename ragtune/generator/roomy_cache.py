"""A cache of keys and values that has room for the answer, so that decoding copies nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer


class _RoomyLayer(DynamicLayer):
    """Keys and values with room behind them. transformers' own layer copies them all for each new token."""

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self.length = layer.keys.shape[-2]
        self._buffers = [pad(states, (0, 0, 0, room)) for states in (layer.keys, layer.values)]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show()


def make_room(cache: Any, tokens: int) -> None:
    """Give each layer of a filled cache room for so many more tokens; sliding windows and the like stay as they are."""
    cache.layers = [_RoomyLayer(layer, tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
