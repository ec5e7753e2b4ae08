"""The translation example: from a small checkpoint that it trained, and its first steps."""

from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from examples.translate import __main__ as command
from examples.translate import corpus, decode, picture, settings

WEIGHTS = Path(decode.__file__).parent / "model.safetensors"
SENTENCES = {  # long, short, and the one of the document
    "Machine learning is fun": "机器学习真好玩",
    "Thank you": "谢谢",
    "The cat does not like the dog": "猫不喜欢狗",
    "Good night": "晚安",
}


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
@pytest.mark.parametrize("backend", decode.BACKENDS)
def test_translation_is_the_same_on_every_backend(backend, cached):
    model = decode.load(backend, WEIGHTS)
    tokens = decode.translate(backend, model, list(SENTENCES), cached=cached)
    expected = [corpus.encode_chinese(chinese)[1:] for chinese in SENTENCES.values()]
    rows = [row + [corpus.PADDING] * (tokens.shape[1] - len(row)) for row in expected]
    assert tokens.tolist() == rows
    assert [corpus.decode_chinese(row) for row in tokens] == list(SENTENCES.values())


@pytest.mark.parametrize("backend", decode.BACKENDS)
def test_cross_attention_is_the_same_on_every_backend(backend):
    sentence, models = next(iter(SENTENCES)), {}
    (tokens,) = decode.translate("numpy", decode.load("numpy", WEIGHTS), [sentence])
    for name in ("numpy", backend):
        model = decode.load(name, WEIGHTS)
        models[name] = decode.cross_attention(name, model, sentence, tokens)
    assert models[backend].shape == (8, 4)
    assert abs(models[backend].sum(1) - 1).max() < 1e-5
    assert abs(models[backend] - models["numpy"]).max() < 1e-4
    assert models[backend].std() > 0.1  # it looks somewhere, not everywhere alike


def test_the_model_needs_its_source():
    model = decode.load("numpy", WEIGHTS)
    given, other = (decode.translate("numpy", model, [s]) for s in list(SENTENCES)[:2])
    assert not np.array_equal(given, other)


def test_target_and_labels_are_shifted_by_one():
    source, target, labels = corpus.batch()
    assert len(source) == len(target) == len(labels) == len(corpus.PAIRS)
    for row, next_row, (_, chinese) in zip(target, labels, corpus.PAIRS, strict=True):
        whole = corpus.encode_chinese(chinese)
        assert [t for t in row if t] == whole[:-1]
        assert [t for t in next_row if t] == whole[1:]


def test_no_sentence_has_two_translations():
    sources = [tuple(corpus.words(english)) for english, _ in corpus.PAIRS]
    assert len(set(sources)) == len(sources)
    assert ("Machine learning is fun", "机器学习真好玩") in corpus.PAIRS


@pytest.mark.parametrize("word", ["", "Quantum learning is fun"])
def test_unknown_words_are_refused(word):
    with pytest.raises(ValueError, match="made of the corpus' words: got"):
        corpus.encode_english(word)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_training_learns(framework):
    train = import_module(f"examples.translate.train_{framework}").train
    small = settings.MODEL | {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 8}
    losses = [loss for _, loss in islice(train(small), 24)]
    assert losses[-1] < 0.9 * losses[0]


def test_command_compares_shows_and_draws(tmp_path, capsys):
    code = command.main(["--weights", str(WEIGHTS), "--folder", str(tmp_path)])
    shown = capsys.readouterr().out
    assert code == 0
    assert shown.count("identical") == 6
    assert f"45 of {len(corpus.PAIRS)}" in shown
    assert "Machine learning is fun -> 机器学习真好玩" in shown
    assert "<svg" in (tmp_path / "attention.svg").read_text("utf-8")


def test_text_shows_a_line_for_each_character():
    weights = np.array([[1.0, 0.0], [0.3, 0.7]])
    drawn = picture.text(weights, ["good", "night"], ["晚", "安"])
    assert drawn == " 1 good\n 2 night\n1 2\n█ ·  晚\n▒ ▓  安"
