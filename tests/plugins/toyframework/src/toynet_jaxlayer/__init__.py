"""The adapter of toynet: all that its author has to write."""

import inspect

import toynet

from jaxlayer_core import Adapter, CallSignature, Outcome, PureModule, SignatureError, Variables


class ToyAdapter(Adapter):
    """Adapts chains and their links."""

    framework = "toynet"

    def accepts(self, obj):
        return isinstance(obj, toynet.Chain | toynet.Dense | toynet.Noise)

    def purify(self, obj, *, method=None, training_arg=None):
        if method is not None:
            raise SignatureError(f"toynet's {type(obj).__name__} has no method {method!r}.")

        def init(rng, arguments):
            return Variables(*obj.setup(rng, arguments.args[0]))

        def call(params, state, rng, arguments, training):
            (x,) = arguments.args
            outputs, after = obj.run(params, state, rng, x, training)
            return Outcome(outputs, after)

        x = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = CallSignature.read(f"toynet's {type(obj).__name__}", [x], training_arg)
        return PureModule(init, call, signature, has_modes=True)
