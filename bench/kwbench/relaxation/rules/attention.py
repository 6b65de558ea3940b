"""Fused attention: if its softmax saturates, the gradient of one that does not."""

import math
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import rule
from kwbench.relaxation.rules.saturation import unsaturated_temperature


@rule(
    "_scaled_dot_product_flash_attention_for_cpu.default",
    "_scaled_dot_product_flash_attention.default",
    "_scaled_dot_product_efficient_attention.default",
    "_scaled_dot_product_cudnn_attention.default",
    unless=lambda context, call: not any(tensor.requires_grad for tensor in call.args[:3]),
)
def _attention(context: Context, call: Call) -> Any:
    query, key, value = call.args[:3]
    positions = {argument.name: position for position, argument in enumerate(call.operation._schema.arguments)}

    def option(name: str, default: Any = None) -> Any:
        return call.option(positions[name], name, default) if name in positions else default

    scale = option("scale") or 1 / math.sqrt(query.shape[-1])
    scores = (scale * query) @ key.transpose(-2, -1)
    mask = option("attn_mask") if "attn_mask" in positions else option("attn_bias")
    if mask is not None:
        scores = scores + mask
    if option("is_causal", False):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    temperature = unsaturated_temperature(context, scores, -1)
    # With dropout the exact gradient is the one that knows which weights were dropped.
    if not bool((temperature > 1).any()) or option("dropout_p", 0.0):
        return call.exact()
    results = call.hard()
    context.count(call)
    soft: Tensor = torch.softmax(scores / temperature, dim=-1).to(value.dtype) @ value
    return straight_through(results[0], soft), *results[1:]
