"""JAX's modules run where arrays of different ranks must not meet."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import attn_jax
from attn_jax import MultiHeadAttention, Seq2SeqTransformer, Transformer, greedy_decode

pytestmark = pytest.mark.usefixtures("compiles_quickly")
X = jax.random.normal(jax.random.key(0), (2, 5, 16))
HIDDEN = jnp.array([[False] * 5, [False] * 3 + [True] * 2])
MASKS = {
    "none": None,
    "causal": attn_jax.causal(),
    "window": attn_jax.sliding_window(2) & attn_jax.segments([[1, 1, 2, 2, 2]] * 2),
    "added": jnp.zeros((5, 5)),
    "hidden": jnp.zeros((5, 5), bool),
    "per head": jnp.zeros((4, 5, 5), bool),
}


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize(
    ("mask", "empty_rows"),
    [(name, "uniform" if name in ("causal", "hidden") else "zero") for name in MASKS],
)
def test_attention_modules(mask, empty_rows):
    options = {"num_kv_heads": 1, "empty_rows": empty_rows, "dropout": 0.1}
    attn = MultiHeadAttention(16, 2, **options, rngs=nnx.Rngs(0))
    for need_weights in (True, False):
        masks = {"key_padding_mask": HIDDEN, "attn_mask": MASKS[mask]}
        output, _ = attn(X, **masks, need_weights=need_weights)
        assert output.shape == X.shape
    attn.eval()
    nnx.grad(lambda attn: attn(X, attn_mask=MASKS[mask])[0].sum())(attn)


def test_decoding():
    attn = MultiHeadAttention(16, 2, rngs=nnx.Rngs(0))
    _, cache = attn.decode(X, attn.new_cache(2, 9), hidden=HIDDEN)
    nnx.jit(lambda attn, x, cache: attn.decode(x, cache))(attn, X[:, :1], cache)
    output, _ = attn.decode(X[:, :1], cache, attn_mask=attn_jax.causal())
    assert output.shape == (2, 1, 16)


@pytest.mark.parametrize("norm_first", [True, False])
def test_stacks(norm_first):
    model = Transformer(16, 2, 1, 1, 24, norm_first=norm_first, rngs=nnx.Rngs(0))
    masks = {"tgt_mask": attn_jax.causal(), "tgt_key_padding_mask": HIDDEN}
    assert model(X, X, **masks, src_key_padding_mask=HIDDEN).shape == X.shape
    cache = model.start(X, 9, src_key_padding_mask=HIDDEN, memory_key_padding_mask=HIDDEN)
    assert model.decode(X, cache, hidden=HIDDEN)[0].shape == X.shape


@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
def test_tokens(positions):
    sizes = {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    model = Seq2SeqTransformer(11, 13, **sizes, positions=positions, rngs=nnx.Rngs(0))
    src, tgt = jnp.array([[3, 4, 0], [5, 6, 7]]), jnp.array([[1, 4], [1, 0]])
    assert model(src, tgt).shape == (2, 2, 13)
    model.eval()
    for cached in (True, False):
        got = greedy_decode(model, src, tgt, eos_idx=2, max_new_tokens=3, cached=cached)
        assert got.shape == (2, 3)
