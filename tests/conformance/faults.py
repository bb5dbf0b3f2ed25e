"""For each property an adapter, or the layer that comes with one, with a fault that breaks it."""

import dataclasses
import inspect
import itertools
import time

import jax
import jax.numpy as jnp

from jaxlayer_core import Arguments, ModuleLayer, Policy, Variables

from . import toy

FAULTS = {}
"""Property to the case and the adapter for which it does not hold."""


def breaks(name, case=toy.BUSY):
    """Adds an adapter class, or the class of its layer, to `FAULTS`."""

    def add(cls):
        assert name not in FAULTS
        FAULTS[name] = case, getattr(cls, "adapter_class", cls)
        return cls

    return add


class Faulty(toy.ToyAdapter):
    """Sound, but for what a subclass changes."""

    def purify(self, obj, *, method=None, training_arg=None):
        pure = super().purify(obj, method=method, training_arg=training_arg)
        return dataclasses.replace(self.spoil(pure, obj), **self.fields(pure))

    def spoil(self, pure, obj):
        def init(rng, arguments):
            return self.init(pure, rng, arguments)

        def call(params, state, rng, arguments, training):
            return self.call(pure, obj, params, state, rng, arguments, training)

        return dataclasses.replace(pure, init=init, call=call)

    def fields(self, pure):
        return {}

    def init(self, pure, rng, arguments):
        return pure.init(rng, arguments)

    def call(self, pure, obj, params, state, rng, arguments, training):
        return pure.call(params, state, rng, arguments, training)


def scaled(outcome, factor):
    return outcome._replace(outputs=jax.tree.map(lambda y: y * factor, outcome.outputs))


# What the adapter accepts, refuses and leaves alone.


@breaks("test_adapter_is_found")
class AcceptsNothing(toy.ToyAdapter):
    def accepts(self, obj):
        return False


@breaks("test_unknown_methods_and_flags_are_refused")
class IgnoresTheMethod(toy.ToyAdapter):
    def purify(self, obj, *, method=None, training_arg=None):
        return super().purify(obj, training_arg=training_arg)


@breaks("test_unknown_arguments_are_refused")
class DropsUnknownArguments(Faulty):
    def fields(self, pure):
        anything = inspect.Parameter("rest", inspect.Parameter.VAR_KEYWORD)
        parameters = (*pure.signature.parameters, anything)
        return {"signature": dataclasses.replace(pure.signature, parameters=parameters)}

    def call(self, pure, obj, params, state, rng, arguments, training):
        known = {p.name for p in pure.signature.parameters}
        kwargs = {name: value for name, value in arguments.kwargs.items() if name in known}
        return pure.call(params, state, rng, Arguments(arguments.args, kwargs), training)


@breaks("test_model_is_left_as_it_was")
class ChangesTheModel(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        obj.features = 5
        return pure.call(params, state, rng, arguments, training)


@breaks("test_layers_are_independent")
class CountsTheLayersOfAModel(Faulty):
    def spoil(self, pure, obj):
        obj.uses = getattr(obj, "uses", 0) + 1
        uses = obj.uses

        def call(*args):
            return scaled(pure.call(*args), uses)

        return dataclasses.replace(pure, call=call)


# Calls.


@breaks("test_initial_values")
class SplitsTheKey(Faulty):
    def init(self, pure, rng, arguments):
        return pure.init(jax.random.split(rng)[0], arguments)


@breaks("test_initial_values_without_data")
class LooksAtTheBatch(Faulty):
    def init(self, pure, rng, arguments):
        usual = arguments.args[0].shape[0] == len(toy.X)
        return pure.init(rng if usual else jax.random.fold_in(rng, 1), arguments)


@breaks("test_inference")
class RoundsInInference(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        outcome = pure.call(params, state, rng, arguments, training)
        return outcome if training else scaled(outcome, 1.001)


@breaks("test_inference_writes_only_caches")
class EverythingIsACache(Faulty):
    def fields(self, pure):
        return {"policy": Policy({"penalty": "loss"}, default="cache")}


@breaks("test_training")
class ForgetsTheState(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        return pure.call(params, state, rng, arguments, training)._replace(state=state)


@breaks("test_default_mode")
class HidesItsModes(Faulty):
    def fields(self, pure):
        return {"has_modes": False}


@breaks("test_arguments_reach_the_model")
class RemembersAnArgument(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        x, _, *rest = arguments.args
        known = Arguments((x, jnp.asarray(toy.SHIFT, x.dtype), *rest), arguments.kwargs)
        return pure.call(params, state, rng, known, training)


@breaks("test_arguments_by_name")
class SwapsNames(Faulty):
    def fields(self, pure):
        x, shift, *rest = pure.signature.parameters
        swapped = (x.replace(name="shift"), shift.replace(name="x"), *rest)
        return {"signature": dataclasses.replace(pure.signature, parameters=swapped)}


@breaks("test_compiled_calls")
class CountsItsTraces(Faulty):
    traces = itertools.count(1)

    def call(self, pure, obj, params, state, rng, arguments, training):
        outcome = pure.call(params, state, rng, arguments, training)
        return scaled(outcome, float(next(self.traces)))


@breaks("test_output_shapes")
class ShowsAnotherShape(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        outcome = pure.call(params, state, rng, arguments, training)
        if arguments.args[0].shape[0] == len(toy.X):
            return outcome
        return outcome._replace(outputs=jax.tree.map(lambda y: y[None], outcome.outputs))


@breaks("test_other_batches")
class KnowsOneBatch(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        outcome = pure.call(params, state, rng, arguments, training)
        outputs = jax.tree.map(lambda y: y[: len(toy.X)], outcome.outputs)
        return outcome._replace(outputs=outputs)


# Randomness.


@breaks("test_seed_moves_only_for_draws")
class DrawsInVain(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        nothing = 0 * jax.random.normal(rng)
        outcome = pure.call(params, state, rng, arguments, training)
        return outcome._replace(outputs=jax.tree.map(lambda y: y + nothing, outcome.outputs))


@breaks("test_draws_are_fresh")
class HasOneKey(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        return pure.call(params, state, jax.random.key(0), arguments, training)


@breaks("test_same_seed")
class CountsItsInits(Faulty):
    inits = itertools.count(1)

    def init(self, pure, rng, arguments):
        made = pure.init(rng, arguments)
        return made._replace(params={**made.params, "b": made.params["b"] + next(self.inits)})


@breaks("test_no_seed")
class InitsWithOneKey(Faulty):
    def init(self, pure, rng, arguments):
        return pure.init(jax.random.key(0), arguments)


# Variables.


@breaks("test_variable_paths")
class RenamesALeaf(Faulty):
    """Right in every number; but who writes `b` in a pattern means nothing."""

    def init(self, pure, rng, arguments):
        params, state = pure.init(rng, arguments)
        return Variables({"z" if name == "b" else name: v for name, v in params.items()}, state)

    def call(self, pure, obj, params, state, rng, arguments, training):
        params = {"b" if name == "z" else name: value for name, value in params.items()}
        return pure.call(params, state, rng, arguments, training)


@breaks("test_given_variables")
class StartsFromZero(Faulty):
    """Right as long as `b` is what init makes it."""

    def call(self, pure, obj, params, state, rng, arguments, training):
        params = {**params, "b": jnp.zeros_like(params["b"])}
        return pure.call(params, state, rng, arguments, training)


class Forgetful(toy.ToyAdapter):
    pass


@breaks("test_saved_weights")
class LayerThatForgetsTheSeed(ModuleLayer):
    """As Keras' own layers do: after loading, the draws start anew."""

    adapter_class = Forgetful

    def __init__(self, module, **options):
        super().__init__(module, adapter=Forgetful, **options)

    def load_own_variables(self, store):
        before = self.seed_generator.state.numpy()
        super().load_own_variables(store)
        self.seed_generator.state.assign(before)


class WithoutRegularizers(toy.ToyAdapter):
    pass


@breaks("test_regularizers")
class LayerWithoutRegularizers(ModuleLayer):
    adapter_class = WithoutRegularizers

    def __init__(self, module, regularizers=None, **options):
        super().__init__(module, adapter=WithoutRegularizers, **options)


# Training.


@breaks("test_gradients")
class StopsAGradient(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        params = {**params, "b": jax.lax.stop_gradient(params["b"])}
        return pure.call(params, state, rng, arguments, training)


@breaks("test_fit")
class Overwrites(Faulty):
    def fields(self, pure):
        return {"policy": pure.policy.extended({"w": "overwritten"})}


@breaks("test_frozen_layer")
class HasTheFlagUpsideDown(Faulty):
    def fields(self, pure):
        return {"signature": dataclasses.replace(pure.signature, flags={"train": False})}


class WithoutFreeze(toy.ToyAdapter):
    pass


@breaks("test_frozen_leaves")
class LayerWithoutFreeze(ModuleLayer):
    adapter_class = WithoutFreeze

    def __init__(self, module, **options):
        super().__init__(module, adapter=WithoutFreeze, **options)

    def freeze(self, pattern):
        pass


class WithoutRemat(toy.ToyAdapter):
    pass


@breaks("test_remat")
class LayerWithoutRemat(ModuleLayer):
    adapter_class = WithoutRemat

    def __init__(self, module, remat=False, **options):
        super().__init__(module, adapter=WithoutRemat, **options)


@breaks("test_mixed_precision")
class ComputesInFloat32(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        params = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
        return pure.call(params, state, rng, arguments, training)


# Running.


@breaks("test_shared_layer")
class CountsToOne(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        outcome = pure.call(params, state, rng, arguments, training)
        one = jnp.ones_like(state["count"])
        return outcome._replace(state={**outcome.state, "count": one})


class WithNotes(toy.ToyAdapter):
    pass


class Note:
    """Cannot be hashed, so nobody can tell whether it has changed."""

    __hash__ = None


@breaks("test_no_retracing")
class LayerWithNotes(ModuleLayer):
    adapter_class = WithNotes

    def __init__(self, module, **options):
        super().__init__(module, adapter=WithNotes, **options)

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs, note=Note())


@breaks("test_threads", toy.LINEAR)
class HasAGlobalMode(Faulty):
    inside = 0

    def call(self, pure, obj, params, state, rng, arguments, training):
        type(self).inside += 1
        time.sleep(0.1)
        alone = self.inside == 1
        outcome = pure.call(params, state, rng, arguments, training)
        time.sleep(0.1)
        type(self).inside -= 1
        return scaled(outcome, 1.0 if alone else 2.0)


@breaks("test_no_leaks")
class KeepsATracer(Faulty):
    def call(self, pure, obj, params, state, rng, arguments, training):
        obj.last = params
        return pure.call(params, state, rng, arguments, training)
