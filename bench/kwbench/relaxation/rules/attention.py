"""Attention that runs as one operation: where its softmax saturates, the gradient of one that does not."""

import math
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import rule
from kwbench.relaxation.rules.saturation import tempered


@rule(
    "_scaled_dot_product_flash_attention_for_cpu.default",
    "_scaled_dot_product_flash_attention.default",
    "_scaled_dot_product_efficient_attention.default",
    "_scaled_dot_product_cudnn_attention.default",
    unless=lambda context, call: not any(each.requires_grad for each in call.args[:3]),
)
def _attention(context: Context, call: Call) -> Any:
    query, key, value = call.args[:3]
    named = {each.name: place for place, each in enumerate(call.operation._schema.arguments)}

    def option(name: str, default: Any = None) -> Any:
        return call.option(named[name], name, default) if name in named else default

    scale = option("scale") or 1 / math.sqrt(query.shape[-1])
    scores = (scale * query) @ key.transpose(-2, -1)
    mask = option("attn_mask") if "attn_mask" in named else option("attn_bias")
    if mask is not None:
        scores = scores + mask
    if option("is_causal", False):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    heat = tempered(context, scores, -1)
    # Where attention is dropped at random, the gradient must know of which.
    if not bool((heat > 1).any()) or option("dropout_p", 0.0):
        return call.exact()
    results = call.hard()
    context.count(call)
    soft: Tensor = torch.softmax(scores / heat, dim=-1).to(value.dtype) @ value
    return straight_through(results[0], soft), *results[1:]
