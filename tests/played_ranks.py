"""A plugin of pytest: in the suite, torch's attention goes through three ranks, played by threads.

    PYTHONPATH=tests python -m pytest -p played_ranks conformance/test_empty.py --backend torch

Dropout, and a mean over all values, go their usual way. Where T is not S a call is filled up. At
the end it is said how many calls were played.
"""

import os
from typing import Any

import torch
from merged import Play, allow_merged
from torch.nn.functional import pad
from torch_ranks import played

import attn_torch
from attn_torch import allow, sharded_attention, zigzag
from attn_torch import attention as attention_of_one
from attn_torch.call import check_call
from conformance.subjects.attn_torch import Adapter

WORLD = 3
EXCHANGE = os.environ.get("PLAYED_EXCHANGE", "ring")
PLAYS: list[Play] = []  # what counts the calls


def play(rank: int, inputs: list, told: dict, grad: torch.Tensor | None = None) -> tuple:
    """Return a rank's rows, or what it has of the gradients."""
    rows = told["rows"]
    query, key, value, bias, sinks = (None if x is None else x.detach() for x in inputs)
    arrays = [x[:, :, rows[rank]] for x in (query, key, value)]
    arrays += [x for x in (bias, sinks) if x is not None]
    if grad is not None:
        arrays = [x.clone().requires_grad_() for x in arrays]
    shared = iter(arrays[3:])
    named = {
        name: None if x is None else next(shared) for name, x in (("bias", bias), ("sinks", sinks))
    }
    output = sharded_attention(*arrays[:3], **named, **told)
    if grad is None:
        return (output,)
    return torch.autograd.grad(output, arrays, grad[:, :, rows[rank]])


class PlayedRing(torch.autograd.Function):
    """Each rank takes its own gradients, in a thread of its own, as in a process of its own."""

    @staticmethod
    def forward(ctx: Any, told: dict, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.told, ctx.inputs = told, inputs
        with played(WORLD) as engine:
            outputs = engine.run(lambda rank: play(rank, inputs, told)[0])
        return torch.cat(outputs, 2)[:, :, torch.cat(told["rows"]).argsort()]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        with played(WORLD) as engine:

            def work(rank):
                with torch.enable_grad():
                    return play(rank, ctx.inputs, ctx.told, grad)

            found = engine.run(work)
        order = torch.cat(ctx.told["rows"]).argsort()
        parts = [torch.cat([each[i] for each in found], 2) for i in range(3)]
        grads: list = [part[:, :, order] for part in parts]
        shares = [sum(each[i].double() for each in found) for i in range(3, len(found[0]))]
        shared = iter(shares)
        for x in ctx.inputs[3:]:
            grads.append(None if x is None else next(shared).to(x.dtype))
        return None, *grads


def square(query, key, value, mask, bias, query_offset) -> tuple:
    """Return a call in which T is S: what is filled up is hidden, and its rows are left out."""
    (B, H, T, _), S = query.shape, key.shape[2]
    length = max(T, S)

    def fill_up(array, *dims):
        widths = [0, 0] * array.ndim
        for dim in dims:
            if array.shape[dim] > 1 or array is not bias:
                widths[2 * (array.ndim - 1 - dim) + 1] = length - array.shape[dim]
        return pad(array, widths)

    allowed = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    if mask is not None:
        allowed = mask.allowed(T, S, query_offset=query_offset, batch=B, heads=H)
    allowed = fill_up(allowed.expand(*allowed.shape[:2], T, S), 2, 3)
    if bias is not None:
        bias = bias[None, None] if bias.ndim == 2 else bias
        bias = fill_up(bias, 2, 3)
    return fill_up(query, 2), fill_up(key, 2), fill_up(value, 2), allow(allowed), bias


def attention(query, key, value, *, bias=None, sinks=None, query_offset=None, **options):
    told = options | {"bias": bias, "sinks": sinks, "query_offset": query_offset}
    call = check_call(query, key, value, **told)  # so that wrong calls are refused as ever
    if call.dropout or call.empty_rows == "uniform":
        PLAYS[0].leave_out("dropout" if call.dropout else "uniform")
        return attention_of_one(query, key, value, **told)
    queries = query.shape[2]
    names = ("mask", "scale", "softcap", "empty_rows")
    told = {name: options[name] for name in names if name in options}
    if queries != key.shape[2] or query_offset is not None:
        arrays = query, key, value, call.mask, bias, call.query_offset
        query, key, value, told["mask"], bias = square(*arrays)
    told |= {"rows": zigzag(query.shape[2], WORLD), "exchange": EXCHANGE}
    PLAYS[0].calls["played"] += 1
    return PlayedRing.apply(told, query, key, value, bias, sinks)[:, :, :queries]


def pytest_configure(config):
    allow_merged()
    PLAYS.append(Play(Adapter, attn_torch, attention))
    Adapter.compiled = PLAYS[0].usual("compiled")
    config.pluginmanager.register(PLAYS[0])
