"""D1: Keras' FlaxLayer needs TensorFlow, even on the JAX backend."""


def test_layers_work_where_tensorflow_is_not_installed(run_python, poison):
    """The user wraps an MLP in an environment that has JAX only.

    Keras' own layer raises `ImportError: This requires the tensorflow module`.

    Seen to fail on keras.layers.FlaxLayer 3.15.1: yes (ImportError at the first call).
    """
    printed = run_python(
        """
        import sys
        import flax.linen as nn, haiku as hk, numpy as np
        from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer

        x = np.ones((2, 3), "float32")
        for layer in (
            FlaxLayer(nn.Dense(4)),
            HaikuLayer(lambda x: hk.Linear(4)(x)),
            JaxLayer(lambda params, inputs: inputs @ params, lambda inputs: np.ones((3, 4))),
        ):
            assert layer(x).shape == (2, 4)
        print("tensorflow" in sys.modules)
        """,
        path=[poison("tensorflow")],
    )
    assert printed.strip() == "False"
