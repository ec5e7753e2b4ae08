"""Models changed after they are built: copied, pickled, given other parts or settings."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .protocol import NotOffered

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def attentions(model) -> list:
    """Return every attention of a model."""
    if hasattr(model, "q_proj"):
        return [model]
    names = ("self_attn", "multihead_attn", "encoder", "decoder", "transformer")
    parts = [getattr(model, name) for name in names if hasattr(model, name)]
    return [attn for part in (*parts, *getattr(model, "layers", [])) for attn in attentions(part)]


class Altering:
    """Builds every model altered while `altered` lasts."""

    new: Any
    how = ""

    @contextmanager
    def altered(self, how: str) -> Iterator[None]:
        """Alter the models that are built inside, in a way of WAYS or of the backend's own."""
        if not hasattr(self, f"alter_{how}"):
            raise NotOffered(f"models cannot be altered like this: {how}")
        self.how = how
        try:
            yield
        finally:
            self.how = ""

    def alter(self, model):
        """Return the model as it is to be used."""
        return getattr(self, f"alter_{self.how}")(model) if self.how else model

    def wrap(self, projection, weight=None):
        """Return a module that calls a projection, and has none of its attributes but a weight."""
        raise NotImplementedError

    def each(self, model, change):
        """Put what `change` makes of it in the place of each projection."""
        for attn in attentions(model):
            for name in PROJECTIONS:
                setattr(attn, name, change(getattr(attn, name)))
        return model

    def resized(self, model, narrower: bool, names=PROJECTIONS):
        """Give half the heads to some projections of an attention, or twice as many."""
        E, H = model.embed_dim, model.num_heads
        if narrower:
            into = self.new("MultiHeadAttention", E, H, num_kv_heads=H // 2).k_proj
            out = self.new("MultiHeadAttention", E, H, kdim=E // 2).k_proj
        else:
            into = self.new("MultiHeadAttention", 2 * E, 2 * H, kdim=E).k_proj
            out = self.new("MultiHeadAttention", E, H, kdim=2 * E).k_proj
        for name in names:
            setattr(model, name, out if name == "out_proj" else into)
        return model

    # Ways in which the numbers stay what they are

    def alter_deepcopied(self, model):
        return copy.deepcopy(model)

    def alter_pickled(self, model):
        return pickle.loads(pickle.dumps(model))

    def alter_wrapped(self, model):
        return self.each(model, self.wrap)

    def alter_packed(self, model):
        """Give each projection the weight of a 4-bit layer: integers, that say no dtype."""
        return self.each(model, lambda own: self.wrap(own, np.zeros(1, np.uint8)))

    # Sizes that are not those of the configuration

    def alter_narrower(self, model):
        return self.resized(model, True)

    def alter_wider(self, model):
        return self.resized(model, False)

    def alter_narrower_queries(self, model):
        return self.resized(model, True, ("q_proj",))

    def alter_narrower_keys(self, model):
        return self.resized(model, True, ("k_proj",))

    def alter_narrower_values(self, model):
        return self.resized(model, True, ("v_proj",))

    def alter_narrower_output(self, model):
        return self.resized(model, True, ("out_proj",))

    # What a file does not say

    def alter_subclassed(self, model):
        model.__class__ = type("Mine", (type(model),), {})
        return model

    def alter_headed(self, model):
        model.head = copy.deepcopy(attentions(model)[0].q_proj)
        return model

    def alter_other_activation(self, model):
        model.layers[1].activation = "gelu"
        return model

    def alter_other_order(self, model):
        model.layers[1].norm_first = True
        return model

    def alter_other_policy(self, model):
        model.layers[1].self_attn.empty_rows = "uniform"
        return model

    def alter_other_dropout(self, model):
        model.layers[1].drop = copy.copy(model.layers[1].drop)
        name = next(n for n in ("p", "rate", "dropout") if hasattr(model.layers[1].drop, n))
        setattr(model.layers[1].drop, name, 0.5)
        return model

    def alter_tied(self, model):
        model.layers[1].linear1 = model.layers[0].linear1
        return model
