"""Flax in configs: what of it may be named."""

from jaxlayer_core.serialization.trust import list_names

list_names(
    {"flax.core", "flax.linen", "flax.struct"},
    outside={
        "flax.core.spmd.set_logical_axis_rules",
        "flax.linen.kw_only_dataclasses",
        "flax.linen.module.disable_named_call",
        "flax.linen.module.enable_named_call",
        "flax.linen.module.override_named_call",
        "flax.linen.spmd.set_logical_axis_rules",
        "flax.struct.dataclass",
    },
    makers={
        "flax.linen.initializers",
        "flax.linen.with_logical_partitioning",
        "flax.linen.with_partitioning",
    },
)
