"""Weights in and out: PyTorch state dicts named as d2l's or torchvision's modules name them."""

from jaxcnn.interop.files import load_state_dict, save_state_dict
from jaxcnn.interop.torch import from_torch, to_torch
from jaxcnn.interop.torchvision import from_torchvision, to_torchvision

__all__ = [
    "from_torch",
    "from_torchvision",
    "load_state_dict",
    "save_state_dict",
    "to_torch",
    "to_torchvision",
]
