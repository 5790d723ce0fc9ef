"""Frozen dataclasses, strict TOML recipes, presets: everything a user can set, and the errors that help to set it."""

from seedthink.config.algorithm import PRESETS, AlgorithmConfig
from seedthink.config.commands import COMMANDS, EvalConfig, GenerateConfig, RlConfig, SftConfig
from seedthink.config.flags import parse
from seedthink.config.loader import load
from seedthink.config.resolved import Change, diff, from_dict, to_dict, to_toml
from seedthink.config.sections import (
    CheckpointConfig,
    ControllerConfig,
    EvalDataConfig,
    EvaluationConfig,
    GenerationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PeriodicEvaluationConfig,
    RequestConfig,
    RewardConfig,
    RlDataConfig,
    RolloutConfig,
    RunConfig,
    RunFolderConfig,
    SftDataConfig,
    SourceConfig,
    TrainerConfig,
    ValuePretrainingConfig,
)

__all__ = [
    "COMMANDS",
    "PRESETS",
    "AlgorithmConfig",
    "Change",
    "CheckpointConfig",
    "ControllerConfig",
    "EvalConfig",
    "EvalDataConfig",
    "EvaluationConfig",
    "GenerateConfig",
    "GenerationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PeriodicEvaluationConfig",
    "RequestConfig",
    "RewardConfig",
    "RlConfig",
    "RlDataConfig",
    "RolloutConfig",
    "RunConfig",
    "RunFolderConfig",
    "SftConfig",
    "SftDataConfig",
    "SourceConfig",
    "TrainerConfig",
    "ValuePretrainingConfig",
    "diff",
    "from_dict",
    "load",
    "parse",
    "to_dict",
    "to_toml",
]
