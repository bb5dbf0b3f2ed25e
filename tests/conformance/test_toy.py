"""The adapter of the toy framework keeps every property."""

from jaxlayer_core.testing import AdapterConformance

from . import toy


class TestToyAdapter(AdapterConformance):
    adapter = toy.ToyAdapter
    cases = (toy.LINEAR, toy.BUSY)
