"""What torch's own engines shard: on every rank what one device gives, or refused in words."""

import copy

import pytest
import torch
from sharded_rows import every_third
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import context_parallel, local_map
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import attn_torch
from attn_torch import (
    MultiHeadAttention,
    QKNorm,
    TransformerEncoder,
    TransformerEncoderLayer,
    allow,
    attention,
    attention_part,
    attention_steps,
    causal,
    contiguous,
    finish,
    greedy_decode,
    padding,
    predicate,
    rotary,
    save,
    segments,
    shard_sequences,
    sharded_attention,
    sliding_window,
    zigzag,
)
from attn_torch.seq2seq import Seq2SeqTransformer

H, G, E, T = 4, 2, 24, 13


def whole(array):
    return array.full_tensor() if isinstance(array, DTensor) else array


def check(found, wanted, what):
    """Compare in float64, with an error of a share of the largest number."""
    assert wanted.dtype == torch.float64, what
    found, wanted = whole(found).detach(), wanted.detach()
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)} for {tuple(wanted.shape)}"
    allowed = 1e-12 * max(wanted.abs().max().item(), 1)
    error = (found - wanted).abs().max().item()
    assert error <= allowed, f"{what}: off by {error:.2g} of {allowed:.2g} allowed"


def plan(local=True):
    columns = [ColwiseParallel(use_local_output=local) for _ in range(3)]
    named = dict(zip(("q_proj", "k_proj", "v_proj"), columns, strict=True))
    return named | {"out_proj": RowwiseParallel()}


def masks():
    some = torch.Generator().manual_seed(1)
    cells = torch.rand(2, H, T, T, generator=some) < 0.5
    return {
        "causal": causal(),
        "lengths": causal() & padding([T, 5]),
        "predicate": predicate(every_third),
        "cells": allow(cells),
        "bias": torch.randn(2, H, T, T, generator=some),
    }


def tensor_parallel(rank, world, folder):
    """Column-wise and row-wise projections: heads, masks, biases, sinks, caches and gradients."""
    mesh = init_device_mesh("cpu", (world,))
    for local in (True, False):
        for name, mask in masks().items():
            torch.manual_seed(0)
            attn = MultiHeadAttention(E, H, num_kv_heads=G, sinks=local)
            if local:
                attn.sinks.data = torch.randn(H)
            x = torch.randn(2, T, E)
            model = parallelize_module(copy.deepcopy(attn), mesh, plan(local))
            told = {"attn_mask": mask, "need_weights": False}
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            outputs = [m(y, **told)[0] for m, y in zip((attn, model), inputs, strict=True)]
            for output in outputs:
                whole(output).square().sum().backward()
            what = f"{name}, local outputs {local}"
            check(outputs[1], outputs[0], what)
            check(inputs[1].grad, inputs[0].grad, f"{what}, gradient of x")
            for (key, p), q in zip(model.named_parameters(), attn.parameters(), strict=True):
                check(p.grad, q.grad, f"{what}, gradient of {key}")
            weights = model(x, attn_mask=mask, average_weights=False)[1]
            wanted = attn(x, attn_mask=mask, average_weights=False)[1]
            wanted = wanted.tensor_split(world, 1)[rank] if local else wanted
            check(weights, wanted, f"{what}, weights")
        key, bias = x.clone(), torch.zeros(T, T)
        key[:, 3], bias[:, 3] = torch.nan, -torch.inf
        got, wanted = (m(x, key, attn_mask=bias, need_weights=False)[0] for m in (model, attn))
        check(got, wanted, f"NaN that a bias hides, local outputs {local}")
    check(model(x)[1], attn(x)[1], "averaged weights of all heads")
    _refused_under_tensor_parallelism(mesh)
    _decoding_under_tensor_parallelism(mesh)


def local_numbers(rank, world, folder):
    """A mistake that must be noticed: a predicate is told a device's own heads."""
    attn_torch.dtensors._cut_mask = lambda mask, bounds: mask
    with pytest.raises(AssertionError, match="predicate, local outputs True: off by"):
        tensor_parallel(rank, world, folder)


def _refused_under_tensor_parallelism(mesh):
    x, attn = torch.randn(2, T, E), MultiHeadAttention(E, H, num_kv_heads=G)
    model = parallelize_module(copy.deepcopy(attn), mesh, plan())
    with pytest.raises(ValueError, match="averaged weights need all heads on one device"):
        model(x)
    alone = parallelize_module(copy.deepcopy(attn), mesh, {"q_proj": ColwiseParallel()})
    with pytest.raises(ValueError, match="shard all projections alike: got 2 of 4 query heads"):
        alone(x, need_weights=False)
    odd = parallelize_module(MultiHeadAttention(E, 3), mesh, plan())
    with pytest.raises(ValueError, match="got 3 heads for 2 devices"):
        odd(x, need_weights=False)
    inside = parallelize_module(copy.deepcopy(attn), mesh, plan(local=False))
    with pytest.raises(TypeError, match="keys of a cache must be local"):
        inside.decode(x, inside.new_cache(2, T))


def _decoding_under_tensor_parallelism(mesh):
    torch.manual_seed(0)
    norm = QKNorm(E // H, rotary())
    attn = MultiHeadAttention(E, H, num_kv_heads=G, sinks=True, process_heads=norm).eval()
    attn.sinks.data, x = torch.randn(H), torch.randn(2, T, E)
    model = parallelize_module(copy.deepcopy(attn), mesh, plan())
    for window in ({"capacity": T + 2}, {"window": T}):
        wanted = attn(x, attn_mask=causal(), need_weights=False)[0]
        cache = model.new_cache(2, **window)
        assert cache.key.shape[1] == G // 2
        first, cache = model.decode(x[:, :9], cache)
        second, cache = model.decode(x[:, 9:10], cache)
        check(torch.cat((first, second), 1), wanted[:, :10], f"decoding, {window}")
    mask = sliding_window(3)
    found = model.decode(x, model.new_cache(2, T), attn_mask=mask)[0]
    check(found, attn(x, attn_mask=mask, need_weights=False)[0], "decoding with a mask")
    layer = TransformerEncoderLayer(E, H, 31).eval()
    named = {f"self_attn.{name}": style for name, style in plan().items()}
    model = parallelize_module(copy.deepcopy(layer), mesh, named)
    check(model(x, causal()), layer(x, causal()), "a layer")


def dtensors(rank, world, folder):
    """DTensors by sample and by head, with masks of the whole call; `local_map`; a sequence."""
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    inputs = [torch.randn(4, heads, T, D) for heads, D in ((H, 8), (G, 8), (G, 5))]
    bias, sinks = torch.randn(4, H, 1, T), torch.randn(H)
    some = torch.Generator().manual_seed(1)
    several = {
        "nothing": None,
        "lengths": causal() & padding([T, 3, 0, 7]),
        "predicate": predicate(every_third),
        "cells": allow(torch.rand(4, 1, T, T, generator=some) < 0.5),
    }
    for name, mask in several.items():
        for dim in (0, 1):
            one = [x.clone().requires_grad_() for x in (*inputs, bias, sinks)]
            wanted = attention(*one[:3], mask=mask, bias=one[3], sinks=one[4])
            wanted.square().sum().backward()
            spread = [distribute_tensor(x.clone(), mesh, [Shard(dim)]) for x in inputs]
            spread += [distribute_tensor(x.clone(), mesh, [Replicate()]) for x in (bias, sinks)]
            spread = [x.requires_grad_() for x in spread]
            found = attention(*spread[:3], mask=mask, bias=spread[3], sinks=spread[4])
            found.square().sum().backward()
            what = f"{name}, dim {dim}"
            assert found.placements == (Shard(dim),), what
            check(found, wanted, what)
            for got, want in zip(spread, one, strict=True):
                check(got.grad, want.grad, f"{what}, a gradient")
            steps = attention_steps(*spread[:3], mask=mask)
            check(steps.weights, attention_steps(*inputs, mask=mask).weights, what)
            part = attention_part(*spread[:3], mask=mask, query_offset=0)
            check(finish(part), attention(*inputs, mask=mask), f"{what}, a part")
            if name not in ("nothing", "predicate") and dim == 0:
                continue  # there `local_map` gives masks that are not cut, and they do not fit
            places = [Shard(dim)]
            attend = local_map(
                lambda q, k, v, mask=mask: attention(q, k, v, mask=mask),
                out_placements=places,
                in_placements=(places,) * 3,
                device_mesh=mesh,
            )
            if name == "predicate":
                with pytest.raises(ValueError, match="got a call inside local_map"):
                    attend(*spread[:3])
                continue
            check(attend(*spread[:3]), attention(*inputs, mask=mask), f"{what}, local_map")
    with pytest.raises(ValueError, match="a sequence is for sharded_attention"):
        attention(*(distribute_tensor(x, mesh, [Shard(2)]) for x in inputs))
    with pytest.raises(TypeError, match="got an ordinary key and value"):
        attention(distribute_tensor(inputs[0], mesh, [Shard(0)]), *inputs[1:])
    spread = [distribute_tensor(x, mesh, [Shard(0)]) for x in inputs]
    with pytest.raises(ValueError, match="bias must be a DTensor, too"):
        attention(*spread, bias=bias.requires_grad_())
    with pytest.raises(ValueError, match="dropout must be 0"):
        attention(*spread, dropout=0.1)


def engines(rank, world, folder):
    """Context parallelism is refused; FSDP2 and DDP give what one device gives."""
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    attn = MultiHeadAttention(E, H)
    arrays = [torch.randn(2, H, 16, 6) for _ in range(3)]
    with context_parallel(mesh, buffers=arrays, buffer_seq_dims=[2, 2, 2]):
        x = torch.randn(2, 1, E)
        for call in (
            lambda: attention(*arrays),
            lambda: attention_steps(*arrays),
            lambda: attention_part(*arrays),
            lambda: attn(x),
            lambda: attn.decode(x, attn.new_cache(2, 4)),
        ):
            with pytest.raises(RuntimeError, match="got a call inside context_parallel"):
                call()
    attention(*arrays)  # outside of it, all is as before
    _check_fsdp(mesh, attn.eval(), folder / f"{rank}.safetensors")
    _check_ddp(rank, world)


def _check_fsdp(mesh, attn, path):
    x = torch.randn(2, T, E)
    wanted = attn(x, attn_mask=causal(), need_weights=False)[0]
    model = fully_shard(copy.deepcopy(attn), mesh=mesh)
    check(model(x, attn_mask=causal(), need_weights=False)[0], wanted, "FSDP")
    model = fully_shard(copy.deepcopy(attn), mesh=mesh)
    for call in (lambda: model.decode(x, model.new_cache(2, T)), lambda: model.project(x)):
        with pytest.raises(RuntimeError, match="call register_fsdp_forward_method"):
            call()
    with pytest.raises(ValueError, match="gather what is sharded"):
        save(model, path)
    register_fsdp_forward_method(model, "decode")
    check(model.decode(x, model.new_cache(2, T))[0], wanted, "FSDP, decoding")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = copy.deepcopy(attn)
    for module in (model.q_proj, model.k_proj, model.v_proj, model.out_proj, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    found = model(x, attn_mask=causal(), need_weights=False)[0]
    half = copy.deepcopy(attn).bfloat16()
    wanted = half(x.bfloat16(), attn_mask=causal(), need_weights=False)[0]
    assert torch.equal(found, wanted), "FSDP in bfloat16"
    sizes = {"d_model": E, "nhead": H, "num_encoder_layers": 1, "num_decoder_layers": 1}
    tokens = Seq2SeqTransformer(11, 13, padding_idx=0, dim_feedforward=8, **sizes).eval()
    model, src = fully_shard(copy.deepcopy(tokens), mesh=mesh), torch.ones(2, 3, dtype=torch.int64)
    prompt = torch.ones(2, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="call register_fsdp_forward_method"):
        greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=3)


def _check_ddp(rank, world):
    torch.manual_seed(0)
    attn, xs = MultiHeadAttention(E, H), torch.randn(world, 2, T, E)
    lengths = [[T, 3], *[[0, 0]] * (world - 1)]  # one rank's samples are all padding
    single = copy.deepcopy(attn)
    losses = [
        single(xs[r], attn_mask=causal() & padding(lengths[r]), need_weights=False)[0]
        for r in range(world)
    ]
    (sum(y.square().sum() for y in losses) / world).backward()
    model = DistributedDataParallel(copy.deepcopy(attn))
    for _ in range(2):  # a second step shows a parameter that was left without a gradient
        model.zero_grad()
        mask = causal() & padding(lengths[rank])
        model(xs[rank], attn_mask=mask, need_weights=False)[0].square().sum().backward()
    for p, q in zip(model.module.parameters(), single.parameters(), strict=True):
        check(p.grad, q.grad, "DDP")


def modules(rank, world, folder):
    """A stack whose sequences are sharded: output, gradients and losses of one device."""
    torch.manual_seed(0)
    some = torch.Generator().manual_seed(1)
    ids = torch.arange(T)[None] // 5
    hidden = torch.zeros(2, T, dtype=torch.bool)
    hidden[1, 4:] = True
    for exchange in ("gathered", "exchanged", "ring"):
        for layout in (contiguous, zigzag):
            rows = layout(T, world)
            mine = rows[rank]
            for norm_first in (False, True):
                stack = TransformerEncoder(2, E, H, 31, dropout=0.0, norm_first=norm_first)
                x = torch.randn(2, T, E, generator=some)
                wanted = stack(x, segments(ids.expand(2, T)) & causal(), hidden)
                wanted.square().sum().backward()
                model = copy.deepcopy(stack)
                model.zero_grad()
                with shard_sequences(rows, exchange=exchange):
                    found = model(x[:, mine], segments(ids.expand(2, T)) & causal(), hidden)
                    found.square().sum().backward()
                what = f"{exchange}, {layout.__name__}, norm_first {norm_first}"
                check(found, wanted[:, mine], what)
                for p, q in zip(model.parameters(), stack.parameters(), strict=True):
                    torch.distributed.all_reduce(p.grad)
                    check(p.grad, q.grad, f"{what}, a parameter's gradient")
    _check_rotary_and_hidden_tokens(rank, world)
    _check_checkpoints(rank, world)
    _refused_in_shards(rank, world)


def _check_rotary_and_hidden_tokens(rank, world):
    rows = zigzag(T, world)
    norm = QKNorm(E // H, rotary())
    attn = MultiHeadAttention(E, H, num_kv_heads=G, sinks=True, process_heads=norm)
    x, hidden = torch.randn(2, T, E), torch.zeros(2, T, dtype=torch.bool)
    hidden[0, 3:6] = True
    x[hidden] = torch.nan
    told = {"attn_mask": causal() & padding(hidden=hidden), "need_weights": False}
    wanted = attn(x, **told)[0]
    with shard_sequences(rows):
        found = attn(x[:, rows[rank]], **told)[0]
    kept = ~hidden[:, rows[rank]]
    check(found[kept], wanted[:, rows[rank]][kept], "rotary, with NaN in hidden tokens")
    # A hidden token's own row is fully masked, or its NaN would be in the keys' gradients.
    told["attn_mask"] &= allow((~hidden[:, None, :, None]).expand(2, 1, T, T))
    wanted = attn(x, **told)[0]
    with shard_sequences(rows):
        found = attn(x[:, rows[rank]], **told)[0]
    for name in ("k_proj", "v_proj"):
        weight = getattr(attn, name).weight
        losses = (y.square().sum() for y in (found, wanted))
        grad, whole_grad = (torch.autograd.grad(y, weight, retain_graph=True)[0] for y in losses)
        torch.distributed.all_reduce(grad)
        check(grad, whole_grad, f"gradient of {name}, with NaN in hidden tokens")


def _check_checkpoints(rank, world):
    """Gradients are taken inside; outside, a module called again would attend to its rows alone."""
    rows, attn, x = zigzag(T, world), MultiHeadAttention(E, H), torch.randn(2, T, E)
    wanted = x.clone().requires_grad_()
    attn(wanted, attn_mask=causal(), need_weights=False)[0].square().sum().backward()

    def attend(y):
        return attn(y, attn_mask=causal(), need_weights=False)[0]

    for reentrant in (True, False):
        found = x[:, rows[rank]].clone().requires_grad_()
        with shard_sequences(rows):
            checkpoint(attend, found, use_reentrant=reentrant).square().sum().backward()
        check(found.grad, wanted.grad[:, rows[rank]], f"a checkpoint, reentrant {reentrant}")
        with shard_sequences(rows):
            output = checkpoint(attend, found, use_reentrant=reentrant)
        attend(x)  # a call in between hides nothing
        with pytest.raises(RuntimeError, match="needs shard_sequences then, too"):
            output.square().sum().backward()
    found = x.clone().requires_grad_()  # and outside a module is what it was, in a checkpoint too
    checkpoint(attend, found, use_reentrant=True).square().sum().backward()
    check(found.grad, wanted.grad, "a checkpoint outside")


def _refused_in_shards(rank, world):
    rows = contiguous(T, world)
    attn, x = MultiHeadAttention(E, H, dropout=0.5), torch.randn(2, len(rows[rank]), E)
    with shard_sequences(rows):
        for call, words in (
            (lambda: attn(x), "need_weights must be False"),
            (lambda: attn(x, x + 1, need_weights=False), "keys must be the query's own"),
            (lambda: attn(x, need_weights=False), "dropout must be 0"),
            (lambda: attn(x[:, :1], need_weights=False), "must have this rank's"),
            (lambda: attn(x, need_weights=False, query_offset=1), "query_offset must be 0"),
        ):
            with pytest.raises(ValueError, match=words):
                call()
        with pytest.raises(RuntimeError, match="leave shard_sequences first"):
            attn.decode(x, attn.new_cache(2, T))
        tokens = torch.ones(2, len(rows[rank]), dtype=torch.long)
        model = Seq2SeqTransformer(5, 5, d_model=8, nhead=2)
        for call in (lambda: model(tokens, tokens), lambda: model.start(tokens, 3)):
            with pytest.raises(ValueError, match=r"one sequence with prefix.*: got a Seq2SeqTrans"):
                call()
    mean = MultiHeadAttention(E, H, empty_rows="uniform")
    for exchange in ("exchanged", "ring"):
        words = "empty_rows must be 'zero' or 'nan'"
        with shard_sequences(rows, exchange=exchange), pytest.raises(ValueError, match=words):
            mean(x, need_weights=False)
    heads = torch.randn(2, H, len(rows[rank]), 4)
    three = (heads, heads, heads)
    for options, words in (
        ({"rows": rows[:1]}, "rows must be given for 2 ranks: got 1"),
        ({"rows": [rows[0], rows[0]]}, "must have every position"),
        ({"rows": rows, "exchange": "best"}, "exchange must be"),
        ({"rows": rows, "exchange": "ring", "empty_rows": "uniform"}, "empty_rows must be"),
        ({"rows": rows, "bias": torch.zeros(3, T)}, r"bias must fit \(T, S\) = \(13, 13\)"),
    ):
        with pytest.raises(ValueError, match=words):
            sharded_attention(*three, **options)
    other = contiguous(T, world) if rank else zigzag(T, world)
    with pytest.raises(
        ValueError, match=rf"must be the same on all ranks: got others on \[{1 - rank}]"
    ):
        shard_sequences(other).__enter__()
    with pytest.raises(TypeError, match="rows must be a list of integers"):
        sharded_attention(*three, rows=T)
    with pytest.raises(NotImplementedError, match="leave out compilation and transforms"):
        torch.func.grad(lambda q: sharded_attention(q, q, q, rows=rows).sum())(heads)
    inputs = [x.clone().requires_grad_() for x in three]
    output = sharded_attention(*inputs, rows=rows, exchange="ring")
    with pytest.raises(NotImplementedError, match="a ring is differentiable once"):
        torch.autograd.grad(output.square().sum(), inputs, create_graph=True)


def heads_and_rows(rank, world, folder):
    """Heads on one axis of a mesh and rows on the other: sinks, a bias, predicates, gradients."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("context", "heads"))
    context, rows = mesh.get_group("context"), zigzag(T, 2)
    mine = rows[mesh.get_local_rank("context")]
    told = {"predicate": predicate(every_third), "bias": masks()["bias"]}
    for exchange, (name, mask) in zip(("exchanged", "ring"), told.items(), strict=True):
        torch.manual_seed(0)
        attn = MultiHeadAttention(E, H, num_kv_heads=G, sinks=True)
        attn.sinks.data, x = torch.randn(H), torch.randn(2, T, E)
        hidden = torch.arange(T) >= torch.tensor([[T], [5]])
        inputs = {"attn_mask": mask, "key_padding_mask": hidden, "need_weights": False}
        wanted = attn(x, **inputs)[0]
        wanted.square().sum().backward()
        model = parallelize_module(copy.deepcopy(attn), mesh["heads"], plan())
        model.zero_grad()
        with shard_sequences(rows, context, exchange):
            found = model(x[:, mine], **inputs)[0]
            found.square().sum().backward()
        check(found, wanted[:, mine], f"{name}, heads and rows")
        for (key, p), q in zip(model.named_parameters(), attn.parameters(), strict=True):
            grad = whole(p.grad).clone()
            torch.distributed.all_reduce(grad, group=context)
            check(grad, q.grad, f"{name}, heads and rows, gradient of {key}")


def groups(rank, world, folder):
    """Two groups of two ranks, with other numbers; and automatic mixed precision."""
    torch.manual_seed(rank % 2)  # the same in a group
    teams = [torch.distributed.new_group([first, first + 2]) for first in (0, 1)]
    group, place, rows = teams[rank % 2], rank // 2, zigzag(T, 2)
    x = torch.randn(3, 2, H, T, 6)
    mine = x[:, :, :, rows[place]]
    for exchange in ("gathered", "exchanged", "ring", "auto"):
        told = {"mask": causal(), "rows": rows, "group": group, "exchange": exchange}
        inputs, whole_inputs = ([a.clone().requires_grad_() for a in b] for b in (mine, x))
        found = sharded_attention(*inputs, **told)
        wanted = attention(*whole_inputs, mask=causal())
        check(found, wanted[:, :, rows[place]], exchange)
        found.square().sum().backward()
        wanted.square().sum().backward()
        for got, want in zip(inputs, whole_inputs, strict=True):
            check(got.grad, want.grad[:, :, rows[place]], f"{exchange}, a gradient")
        with torch.autocast("cpu", torch.bfloat16):
            query, key, value = mine[0].float(), mine[1].bfloat16(), mine[2].float()
            found = sharded_attention(query, key, value, **told)
        wanted = sharded_attention(*(a.bfloat16() for a in (query, key, value)), **told)
        assert torch.equal(found, wanted), f"{exchange}, autocast"
    with pytest.raises(ValueError, match="group must be one that this rank is in"):
        sharded_attention(*mine, rows=rows, group=teams[1 - rank % 2])
