"""Weights in and out: PyTorch state dicts named as d2l's modules name them."""

from jaxcnn.interop.torch import from_torch, load_state_dict, save_state_dict, to_torch

__all__ = ["from_torch", "load_state_dict", "save_state_dict", "to_torch"]
