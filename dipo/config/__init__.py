"""The configuration of a job: its sections, the presets, and what the two make together.

Importing it is cheap: Hydra waits until something is composed.
"""

from dipo.config.compose import compose_config, to_yaml
from dipo.config.job import (
    ZOO,
    AlgoConfig,
    ClusterConfig,
    Config,
    DataConfig,
    ExportConfig,
    ModelConfig,
    PlatformConfig,
    RunConfig,
    resolve_path,
    to_plain,
)

__all__ = [
    "ZOO",
    "AlgoConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "ExportConfig",
    "ModelConfig",
    "PlatformConfig",
    "RunConfig",
    "compose_config",
    "resolve_path",
    "to_plain",
    "to_yaml",
]
