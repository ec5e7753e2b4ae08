"""What the frameworks' transforms have in common: a call taken apart, and its answers put by name.

A backend has a method `_run_HOW` for each way of making a program, and one `_ROUTE` for each route
to a derivative.
"""

import warnings
from typing import Any

import numpy as np

from .flat import arrays_of, change
from .models import CLASSES
from .protocol import NotOffered


class Transforming:
    """Makes programs and derivatives of calls."""

    name: str
    array: Any
    numpy: Any
    builder: Any
    module: Any
    model: Any
    options: Any
    scope: Any

    def transformed(self, how, calls, *, kind="", config=None, parameters=None):
        if not hasattr(self, f"_run_{how}"):
            raise NotOffered(f"{self.name} has no {how} programs")
        with self.scope(next(iter(calls[0]["inputs"].values())).dtype.name):
            model = self.model(kind, config, parameters or {}) if kind else None
            run, make = self._runner(model), self.builder(calls[0])
            function = self.function_of(lambda *arrays: run(make(arrays)), model)
            arrays = [[self.array(x) for x in arrays_of(call)] for call in calls]
            names = list(calls[0]["inputs"]) if "grad" in calls[0] else []
            found, programs = getattr(self, f"_run_{how}")(function, arrays, len(names), calls)
            if names:
                dicts = [dict(zip(names, map(self.numpy, own), strict=True)) for own in found]
                return dicts, programs
            return [self.numpy(own) for own in found], programs

    def function_of(self, function, model):
        """Return a function of arrays as the framework wants it."""
        return function

    def _runner(self, model):
        """Return what a call gives, as a function of the call."""
        if model is None:
            attention = self.module.attention  # here, so that no graph holds the subject
            return lambda call: attention(*call["inputs"].values(), **call["options"])
        more = {"need_weights": False} if type(model).__name__ == CLASSES["attention"] else {}
        run = self.run_model(model)

        def run_call(call):
            inputs, options = call["inputs"].values(), call["options"] | more
            found = run(call.get("parameters", {}), inputs, options)
            return found[0] if more else found

        return run_call

    def run_model(self, model):
        """Return a model as a function of the parameters that are not its own, inputs, options."""
        raise NotImplementedError

    def derivatives(self, route, call, directions, *, kind="", config=None):
        if not hasattr(self, f"_{route}"):
            raise NotOffered(f"{self.name} differentiates by other routes than {route}")
        with self.scope(call["grad"].dtype.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of reference cycles
            model = self.model(kind, config, call["parameters"]) if kind else None
            run, arrays, names = self._runner(model), change(call, self.array), list(directions)
            options = self.options(arrays["options"])

            def output(*leaves):
                given = dict(zip(names, leaves, strict=True))
                own = {n: given.get(n, x) for n, x in arrays["inputs"].items()}
                more = {n: given.get(n, x) for n, x in options.items()}
                own = {"inputs": own, "options": more}
                return run(own | ({"parameters": given} if kind else {}))

            learned = arrays["inputs"] | {n: options.get(n) for n in ("bias", "sinks")}
            leaves = arrays.get("parameters", learned)
            leaves = tuple(leaves[name] for name in names)
            along = tuple(self.array(x) for x in directions.values())
            found = self.differentiate(route, output, arrays["grad"], leaves, along)
            named = dict(zip([*names, "tangent"], found, strict=False))
            if route == "forward":
                named = {"tangent": found[0]}
            return {name: self.numpy(x) for name, x in named.items()}

    def differentiate(self, route, output, grad, leaves, along):
        return getattr(self, f"_{route}")(output, grad, leaves, along)


def mapped_axes(calls) -> tuple[int | None, ...]:
    """Return for each array of the calls None if all have the same one, else 0."""
    columns = zip(*map(arrays_of, calls), strict=True)
    return tuple(
        None if len(calls) > 1 and all(np.array_equal(column[0], x) for x in column) else 0
        for column in columns
    )
