"""What a user does with a layer, as arrays. Imports no framework: it runs where there is none."""

import jax
import jax.numpy as jnp
import keras
import numpy as np


def plain(value):
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def leaves(tree):
    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def values(layer):
    return [plain(v.value) for v in (*layer.variables, layer.seed_generator.state)]


def total(outputs):
    floats = [o for o in jax.tree.leaves(outputs) if jnp.issubdtype(o.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.asarray(o, "float32") ** 2) for o in floats)


def predictions(layer, calls):
    """Outputs, losses and all variables after calls in every mode, and of two batch sizes."""
    found = []
    for (args, kwargs), training in zip((calls[0], *calls), (False, True, None), strict=False):
        found += leaves(layer(*args, training=training, **kwargs))
        found += leaves(layer.losses) + values(layer)
    return found


def gradients(layer, calls):
    """Of weights and of floating inputs, in both modes."""
    args, kwargs = calls[0]
    weights = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]
    flat, treedef = jax.tree.flatten(args)
    inputs = {i: x for i, x in enumerate(flat) if is_floating(x)}

    def loss(weights, inputs, training):
        given = [inputs.get(i, x) for i, x in enumerate(flat)]
        args = jax.tree.unflatten(treedef, given)
        outputs, _ = layer.stateless_call(weights, rest, *args, training=training, **kwargs)
        return total(outputs)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    return leaves([gradient(weights, inputs, training) for training in (False, True)])


def is_floating(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def five_steps(layer, calls):
    """Losses, weights and state of plain gradient descent."""
    args, kwargs = calls[0]

    @jax.jit
    def step(weights, rest):
        def loss(weights):
            outputs, after = layer.stateless_call(weights, rest, *args, training=True, **kwargs)
            return total(outputs), after

        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, [w - 0.01 * g for w, g in zip(weights, gradient, strict=True)], rest

    weights = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]
    losses = []
    for _ in range(5):
        value, weights, rest = step(weights, rest)
        losses.append(value)
    return leaves([losses, weights, rest])


def fitted(layer, calls):
    """What `fit` reports and leaves behind, with a layer of Keras after it.

    Not with Adam, which makes steps of full size of gradients that are nothing but rounding.
    """
    (x,), _ = calls[0]
    inputs = keras.Input(x.shape[1:], dtype=x.dtype)
    outputs = layer(inputs)
    outputs = keras.layers.Dense(1, kernel_initializer="ones")(
        outputs[0] if isinstance(outputs, tuple | list) else outputs
    )
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    history = model.fit(x, np.ones((len(x), 1)), batch_size=2, epochs=2, shuffle=False, verbose=0)
    ends = [name.rpartition("/")[2] for name in history.history]
    found = [np.asarray(v) for _, v in sorted(zip(ends, history.history.values(), strict=True))]
    return [*found, model.predict(x, verbose=0), *values(layer)]


EXERCISES = {f.__name__: f for f in (predictions, gradients, five_steps, fitted)}
