"""The chapter on weights: saved and loaded bit for bit, in other libraries' layouts, or refused."""

import json
import pickle
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from .cases import models, multihead
from .cases.arrays import normal
from .cases.compare import refused
from .cases.models import ModelCase
from .cases.multihead import CROSS, GROUPED, NO_BIAS, WIDTHS
from .cases.weight_layouts import nested, to_nnx, to_torch
from .contract import clause
from .oracle.tolerance import Differs, close, compare, same
from .subjects.protocol import NotOffered, require
from .test_agreement import others
from .vectors import tensors

FANCY = {"norm_first": True, "activation": "gelu", "layer_norm_eps": 0.2, "bias": False}
MODELS = {
    "attention": CROSS,
    "grouped": GROUPED,
    "widths": WIDTHS,
    "no_bias": NO_BIAS,
    "encoder_layer": ModelCase("encoder_layer"),
    "decoder_layer": ModelCase("decoder_layer", FANCY),
    "encoder": ModelCase("encoder", FANCY | {"norm": True}),
    "decoder": ModelCase("decoder", {"norm": True}),
    "transformer": ModelCase("transformer"),
    "seq2seq": ModelCase("seq2seq", {"positions": "none", "padding_idx": 3}),
}
# Each other dtype, in a model of its own.
IN_OTHER_DTYPES = [
    ("widths", "float64"),
    ("transformer", "bfloat16"),
    ("encoder_layer", "float16"),
]


def kind_of(call) -> str:
    return getattr(call, "kind", "attention")


def same_parameters(got: dict, wanted: dict, what: str) -> None:
    """Hold parameters bit for bit, dtypes included."""
    if sorted(got) != sorted(wanted):
        raise Differs(f"{what}: expected {sorted(wanted)}, got {sorted(got)}")
    for name, array in wanted.items():
        if got[name].dtype != array.dtype:
            raise Differs(f"{what}: {name} is {got[name].dtype}, expected {array.dtype}")
        same(got[name], array, f"{what}: {name}")


def save(subject, name: str, dtype: str, path: Path):
    """Save a model and return its call and its parameters."""
    require(subject, "checkpoints")
    call = MODELS[name]
    parameters = call.parameters(dtype)
    subject.save(kind_of(call), call.config, parameters, path)
    return call, parameters


@clause("WGT-1")
@pytest.mark.parametrize(("name", "dtype"), [("seq2seq", "float32"), *IN_OTHER_DTYPES])
def test_what_is_saved_is_what_the_names_say(subject, tmp_path, name, dtype):
    _, parameters = save(subject, name, dtype, tmp_path / "saved.safetensors")
    arrays, _ = tensors.read(tmp_path / "saved.safetensors")
    same_parameters(arrays, parameters, "in the file")


@clause("WGT-1")
def test_weights_are_saved_row_by_row_however_they_lie_in_memory(subject, tmp_path):
    require(subject, "checkpoints")
    call, path = MODELS["grouped"], tmp_path / "saved.safetensors"
    parameters = {name: np.asfortranarray(x) for name, x in call.parameters("float32").items()}
    subject.save(kind_of(call), call.config, parameters, path)
    same_parameters(tensors.read(path)[0], parameters, "in the file")


@clause("WGT-1")
@pytest.mark.parametrize(("name", "dtype"), [*((n, "float32") for n in MODELS), *IN_OTHER_DTYPES])
def test_a_saved_model_comes_back_bit_for_bit(subject, tmp_path, name, dtype):
    _, parameters = save(subject, name, dtype, tmp_path / "saved.safetensors")
    got, _ = subject.load(tmp_path / "saved.safetensors", dtype)
    same_parameters(got, parameters, "loaded")


@clause("WGT-1")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in ("grouped", "no_bias", "seq2seq")), *IN_OTHER_DTYPES],
)
def test_a_saved_model_comes_back_in_every_backend(request, subject, tmp_path, name, dtype):
    there = [other for other in others(request, subject, "weights") if dtype in other.dtypes]
    _, parameters = save(subject, name, dtype, tmp_path / "saved.safetensors")
    for other in there:
        got, _ = other.load(tmp_path / "saved.safetensors", dtype)
        same_parameters(got, parameters, f"loaded by {other.name}")


def token_inputs(call: ModelCase) -> dict[str, np.ndarray]:
    rng, config = np.random.default_rng(91), call.config
    sizes = {"src": models.S, "tgt": models.T}
    return {n: rng.integers(0, config[f"{n}_vocab"], (models.B, k)) for n, k in sizes.items()}


@clause("WGT-1")
@pytest.mark.parametrize("name", [n for n, call in MODELS.items() if kind_of(call) != "attention"])
def test_a_loaded_model_is_configured_as_it_was(subject, tmp_path, name):
    call, parameters = save(subject, name, "float32", tmp_path / "saved.safetensors")
    inputs = token_inputs(call) if name == "seq2seq" else call.inputs()
    _, run = subject.load(tmp_path / "saved.safetensors")
    exact, naive = call.expected(inputs, parameters)
    kept = inputs["tgt"] != 3 if name == "seq2seq" else slice(None)
    compare(run(inputs)["output"][kept], *(y["output"][kept] for y in (exact, naive)), "output")


@clause("WGT-1")
def test_layout_and_policy_are_saved_too(subject, tmp_path):
    require(subject, "checkpoints")
    call = ModelCase("encoder_layer", {"batch_first": False, "empty_rows": "uniform"})
    path = tmp_path / "saved.safetensors"
    subject.save(call.kind, call.config, call.parameters(), path)
    _, run = subject.load(path)
    hidden = np.arange(models.S) >= np.array([7, 0, 4])[:, None]
    x = call.inputs()
    got = run({"src": x["src"].swapaxes(0, 1)}, src_key_padding_mask=hidden)["output"]
    exact, naive = call.expected(x, src=(~hidden[:, None, None], None))
    compare(got.swapaxes(0, 1), exact["output"], naive["output"], "output")


TORCH = [name for name in MODELS if name not in ("grouped", "seq2seq")]


def check_import(subject, call, weights, layout: str, dtype: str = "float32") -> None:
    """Import into a model that has other parameters, and hold what it has then."""
    require(subject, "checkpoints")
    parameters = call.parameters(dtype)
    before = {name: -array for name, array in parameters.items()}
    error, after = subject.import_weights(kind_of(call), call.config, before, weights, layout)
    if error is not None:
        raise Differs(f"weights in the layout {layout} were refused: {error}")
    same_parameters(after, parameters, f"imported from {layout}")


@clause("WGT-2")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TORCH)
def test_torchs_layout_goes_in_and_out(subject, name, dtype):
    require(subject, "checkpoints")
    call = MODELS[name]
    parameters = call.parameters(dtype)
    theirs = to_torch(parameters)
    got = subject.export_weights(kind_of(call), call.config, parameters, "torch")
    same_parameters(got, theirs, "exported to torch")
    check_import(subject, call, theirs, "torch", dtype)


@clause("WGT-2")
@pytest.mark.parametrize("name", ["attention", "transformer"])
def test_a_file_or_a_nested_mapping_goes_in_too(subject, tmp_path, name):
    call = MODELS[name]
    theirs = to_torch(call.parameters("float32"))
    tensors.write(tmp_path / "theirs.safetensors", theirs)
    check_import(subject, call, tmp_path / "theirs.safetensors", "torch")
    check_import(subject, call, nested(theirs), "torch")
    check_import(subject, call, nested(call.parameters("float32")), "rosetta")


def torch_peer(name: str):
    """Return torch.nn's own module, as it starts, in training mode with a dropout of 0."""
    from torch import nn

    call, plain = MODELS[name], {"batch_first": True, "bias": name != "no_bias"}
    if kind_of(call) == "attention":
        return nn.MultiheadAttention(14, 2, kdim=call.kdim, vdim=call.vdim, **plain)
    names = ("activation", "layer_norm_eps", "norm_first")
    options = {n: call.config[n] for n in names if n in call.config}
    options |= {"batch_first": True, "bias": call.config.get("bias", True)}
    sizes = (14, 2, 11, 0.0)
    if name == "transformer":
        return nn.Transformer(14, 2, 2, 3, 11, 0.0, **options)
    part = "Encoder" if "encoder" in name else "Decoder"
    layer = getattr(nn, f"Transformer{part}Layer")(*sizes, **options)
    if "layer" in name:
        return layer
    eps = options.get("layer_norm_eps", 1e-5)
    return getattr(nn, f"Transformer{part}")(layer, 2, nn.LayerNorm(14, eps, bias=options["bias"]))


def shaken(peer) -> None:
    """Move every parameter, so that no norm is 1 and no bias 0."""
    import torch

    with torch.no_grad():
        for i, parameter in enumerate(peer.parameters()):
            noise = normal(92 + i, *parameter.shape, dtype_name="float32")
            parameter += 0.3 * torch.from_numpy(noise)


@clause("WGT-2")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("name", TORCH)
def test_torchs_own_module_gives_the_same_and_takes_it_back(subject, name):
    require(subject, "checkpoints")
    if not find_spec("torch"):
        raise NotOffered("torch is not installed")
    import torch

    call, peer = MODELS[name], torch_peer(name)
    shaken(peer)
    blank = {n: np.zeros_like(x) for n, x in call.parameters("float32").items()}
    weights = dict(peer.state_dict())
    error, ours = subject.import_weights(kind_of(call), call.config, blank, weights, "torch")
    if error is not None:
        raise Differs(f"torch's own state was refused: {error}")
    check_outputs(subject, call, ours, peer)
    back = subject.export_weights(kind_of(call), call.config, ours, "torch")
    same_parameters(back, {n: x.numpy() for n, x in weights.items()}, "back in torch's layout")
    peer.load_state_dict({n: torch.from_numpy(np.array(x)) for n, x in back.items()})


def check_outputs(subject, call, ours: dict, peer) -> None:
    """Check our output and the peer's against the oracle's."""
    import torch

    if kind_of(call) == "attention":
        inputs = call.inputs()
        with torch.no_grad():
            theirs = peer(*map(torch.from_numpy, inputs))[0].numpy()
        got, _ = subject.multihead(call.config, ours, *inputs)
        allowed = np.ones((3, 2, 5, 7), bool)
        exact, naive = multihead.expected.multihead(ours, 2, 2, *inputs, allowed=allowed)
    else:
        inputs = call.inputs()
        with torch.no_grad():
            theirs = peer(*map(torch.from_numpy, inputs.values())).numpy()
        got = subject.layer(call.kind, call.config, ours, inputs)["output"]
        exact, naive = call.expected(inputs, ours)
    compare(theirs, exact["output"], naive["output"], "torch's own output")
    compare(got, exact["output"], naive["output"], "output by torch.nn's weights")


@clause("WGT-2")
@pytest.mark.untyped
def test_torchs_layout_has_no_grouped_heads(subject):
    require(subject, "checkpoints")
    call = ("attention", GROUPED.config, GROUPED.parameters("float32"), "torch")
    texts = ("layout 'torch'", "got 2 for 4")
    refused(
        subject,
        lambda: subject.export_weights(*call),
        ValueError,
        *texts,
        beside=lambda: subject.export_weights(*call[:-1], "rosetta"),
    )


FLAX = ["attention", "grouped", "widths", "no_bias"]


@clause("WGT-3")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FLAX)
def test_flaxs_layout_goes_in_and_out(subject, name, dtype):
    require(subject, "checkpoints")
    call = MODELS[name]
    parameters = call.parameters(dtype)
    theirs = to_nnx(parameters, call.heads[0])
    got = subject.export_weights("attention", call.config, parameters, "nnx")
    same_parameters(got, theirs, "exported to nnx")
    check_import(subject, call, theirs, "nnx", dtype)
    check_import(subject, call, nested(theirs), "nnx", dtype)


@clause("WGT-3")
def test_flaxs_own_module_gives_the_same_and_takes_it_back(subject):
    require(subject, "checkpoints")
    if not find_spec("flax"):
        raise NotOffered("flax is not installed")
    import jax
    import jax.numpy as jnp
    from flax import nnx

    peer = nnx.MultiHeadAttention(2, 14, decode=False, rngs=nnx.Rngs(0))
    weights = nnx.to_pure_dict(nnx.state(peer, nnx.Param))
    blank = {n: np.zeros_like(x) for n, x in CROSS.parameters("float32").items()}
    error, ours = subject.import_weights("attention", CROSS.config, blank, weights, "nnx")
    if error is not None:
        raise Differs(f"flax's own state was refused: {error}")
    inputs = CROSS.inputs()
    with jax.default_matmul_precision("highest"):
        theirs = np.asarray(peer(*map(jnp.asarray, inputs)))
    got, _ = subject.multihead(CROSS.config, ours, *inputs)
    exact, naive = multihead.expected.multihead(
        ours, 2, 2, *inputs, allowed=np.ones((3, 2, 5, 7), bool)
    )
    compare(theirs, exact["output"], naive["output"], "flax's own output")
    close(got, theirs, exact["output"], naive["output"], "output against flax.nnx")
    back = subject.export_weights("attention", CROSS.config, ours, "nnx")
    moved = nnx.MultiHeadAttention(2, 14, decode=False, rngs=nnx.Rngs(1))
    nnx.update(moved, nested({n: jnp.asarray(x) for n, x in back.items()}))
    with jax.default_matmul_precision("highest"):
        same(moved(*map(jnp.asarray, inputs)), theirs, "flax's output with what came back")


def wrong_weights(parameters: dict) -> dict:
    """Return weights of which one is missing, one too many, one misshapen and one of float16."""
    wrong = dict(parameters)
    del wrong["linear1.bias"]
    wrong["linear3.weight"] = np.zeros((2, 2), np.float32)
    wrong["linear2.weight"] = wrong["linear2.weight"][:, :-1]
    wrong["norm2.bias"] = wrong["norm2.bias"].astype(np.float16)
    return wrong


LISTED = ("linear1.bias", "linear3.weight", "linear2.weight (14, 10) for (14, 11)",
          "norm2.bias float16 for float32")  # fmt: skip


@clause("WGT-4")
@pytest.mark.untyped
@pytest.mark.parametrize("form", ["mapping", "file"])
def test_everything_wrong_is_listed_and_nothing_is_loaded(subject, tmp_path, form):
    require(subject, "checkpoints")
    call = MODELS["encoder_layer"]
    before = call.parameters()
    wrong = wrong_weights({name: array + 1 for name, array in before.items()})
    if form == "file":
        tensors.write(tmp_path / "wrong.safetensors", wrong)
        wrong = tmp_path / "wrong.safetensors"
    error, after = subject.import_weights(call.kind, call.config, before, wrong, "rosetta")
    lacking = [text for text in LISTED if text not in str(error)]
    if type(error) is not ValueError or lacking:
        raise Differs(f"expected a ValueError that lists {lacking}, got {error!r}")
    same_parameters(after, before, "after the refusal")


@clause("WGT-4")
@pytest.mark.untyped
@pytest.mark.parametrize("name", ["bias_k", "bias_v"])
def test_torchs_extra_biases_are_refused_by_name(subject, name):
    require(subject, "checkpoints")
    parameters = CROSS.parameters("float32")
    weights = to_torch(parameters) | {name: np.zeros((1, 1, 14), np.float32)}
    error, after = subject.import_weights("attention", CROSS.config, parameters, weights, "torch")
    if type(error) is not ValueError or name not in str(error):
        raise Differs(f"expected a ValueError that names {name}, got {error!r}")
    same_parameters(after, parameters, "after the refusal")


# Files that are not what they say


def check_refused(subject, path: Path, what: str, also_weights: bool = False) -> None:
    """See that a file is refused, with ValueError, by `load` and where told as weights too."""
    try:
        subject.load(path)
    except ValueError:
        pass
    except NotOffered:
        raise
    except Exception as error:  # the type is what is tested
        raise Differs(f"{what}: expected a ValueError, got {type(error).__name__}") from error
    else:
        raise Differs(f"{what}: expected a ValueError, got a model")
    if also_weights:
        call = MODELS["encoder_layer"]
        before = call.parameters()
        error, _ = subject.import_weights(call.kind, call.config, before, path, "rosetta")
        if type(error) is not ValueError:
            raise Differs(f"{what}, as weights: expected a ValueError, got {error!r}")


@clause("WGT-4")
@pytest.mark.untyped
def test_a_truncated_file_is_refused(subject, tmp_path):
    path = tmp_path / "saved.safetensors"
    save(subject, "encoder_layer", "float32", path)
    content = path.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    for length in (0, 4, 8, 8 + header // 2, 8 + header, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        check_refused(subject, path, f"{length} of {len(content)} bytes", also_weights=True)


@clause("WGT-4")
@pytest.mark.untyped
def test_a_folder_is_refused(subject, tmp_path):
    require(subject, "checkpoints")
    check_refused(subject, tmp_path, "a folder", also_weights=True)


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@clause("WGT-4")
@pytest.mark.untyped
def test_nothing_is_ever_unpickled(subject, tmp_path):
    require(subject, "checkpoints")
    path = tmp_path / "saved.safetensors"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    check_refused(subject, path, "a pickle", also_weights=True)
    assert not (tmp_path / "trapped").exists(), "WGT-4: a file was unpickled"


@clause("WGT-4")
@pytest.mark.untyped
@pytest.mark.parametrize("header", ["long", "no_json", "overlap", "beyond", "float8"])
def test_a_header_that_lies_is_refused(subject, tmp_path, header):
    require(subject, "checkpoints")
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    lies = {
        "float8": {"a": entry | {"dtype": "F8_E4M3", "shape": [4, 4]}},
        "overlap": {"a": entry, "b": entry},
        "beyond": {"a": entry | {"shape": [2**40, 2**20], "data_offsets": [0, 2**62]}},
    }
    text = json.dumps(lies[header]).encode() if header in lies else b"{" * 64
    length = 2**62 if header == "long" else len(text)
    path = tmp_path / "lying.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + bytes(16))
    check_refused(subject, path, f"a header that is {header}", also_weights=True)


@clause("WGT-4")
@pytest.mark.untyped
def test_metadata_that_does_not_fit_is_refused(subject, tmp_path):
    path = tmp_path / "saved.safetensors"
    save(subject, "encoder", "float32", path)
    arrays, metadata = tensors.read(path)
    assert metadata, "WGT-4: a saved model says nothing of its configuration"
    tensors.write(path, arrays)
    check_refused(subject, path, "no metadata")
    for key in metadata:
        for what, other in (("nonsense", "os.system"), ("of another class", "Transformer")):
            tensors.write(path, arrays, metadata | {key: other})
            check_refused(subject, path, f"metadata with {key} {what}")
        tensors.write(path, arrays, {k: v for k, v in metadata.items() if k != key})
        check_refused(subject, path, f"metadata without {key}")


def settings_of(metadata: dict[str, str]) -> tuple[str, dict]:
    """Return the entry of the metadata that is a JSON object, and the object."""
    for key, text in metadata.items():
        if text.startswith("{"):
            return key, json.loads(text)
    raise Differs(f"a configuration is JSON in the metadata: got {metadata}")


@clause("WGT-4")
@pytest.mark.untyped
@pytest.mark.parametrize("value", [10**9, -1, 0, 1.5, "7", None, [2]], ids=repr)
def test_a_configuration_that_does_not_fit_is_refused(subject, tmp_path, value):
    path = tmp_path / "saved.safetensors"
    save(subject, "encoder", "float32", path)
    arrays, metadata = tensors.read(path)
    key, settings = settings_of(metadata)
    sizes = [n for n, own in settings.items() if type(own) is int]
    assert {"d_model", "nhead", "dim_feedforward", "num_layers"} <= set(sizes), f"WGT-4: {sizes}"
    for name in sizes:
        tensors.write(path, arrays, metadata | {key: json.dumps(settings | {name: value})})
        check_refused(subject, path, f"{name} = {value!r}")
    for name in ("rng", "rngs", "device", "dtype", "unheard_of"):  # no file's business
        tensors.write(path, arrays, metadata | {key: json.dumps(settings | {name: value})})
        check_refused(subject, path, f"a setting {name} = {value!r}")
