"""One configuration tree per command, made of the sections. A recipe's tables carry the names of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field

from seedthink.config.algorithm import AlgorithmConfig
from seedthink.config.sections import (
    CheckpointConfig,
    ControllerConfig,
    EvalDataConfig,
    EvaluationConfig,
    GenerationConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PeriodicEvaluationConfig,
    RequestConfig,
    RewardConfig,
    RlDataConfig,
    RolloutConfig,
    RouterConfig,
    RunConfig,
    RunFolderConfig,
    SftDataConfig,
    TrainerConfig,
    ValuePretrainingConfig,
)


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """Reinforcement learning from verifiable rewards."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name, folder, length."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy to start from."""
    data: RlDataConfig = field(default_factory=RlDataConfig)
    """Problems."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How experience is gathered."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Who judges answers."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """Preset and its switches."""
    policy_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW of the policy."""
    critic_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW of the critic (algorithms with a critic)."""
    value_pretraining: ValuePretrainingConfig = field(default_factory=ValuePretrainingConfig)
    """The critic's start (algorithms with a critic)."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Micro-batches."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Recomputation and offloading."""
    router: RouterConfig = field(default_factory=RouterConfig)
    """Evenly used experts."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """Ray or one process."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the ranks of a launch share the work."""
    evaluation: PeriodicEvaluationConfig = field(default_factory=PeriodicEvaluationConfig)
    """Held-out accuracy."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is kept."""


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning on chains of thought."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name, folder, length."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to start from."""
    data: SftDataConfig = field(default_factory=SftDataConfig)
    """Texts to imitate."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Micro-batches."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Recomputation and offloading."""
    router: RouterConfig = field(default_factory=RouterConfig)
    """Evenly used experts."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Sampling of evaluations."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Who judges answers in evaluations."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """Ray or one process."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the ranks of a launch share the work."""
    evaluation: PeriodicEvaluationConfig = field(default_factory=PeriodicEvaluationConfig)
    """Held-out accuracy."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is kept."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Accuracy of a model on held-out problems."""

    run: RunFolderConfig = field(default_factory=RunFolderConfig)
    """Name and folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to measure."""
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    """Held-out problems."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How to sample."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Who judges answers."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How many problems and samples."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """Ray or one process."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the ranks of a launch share the work."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Answers from a model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to ask."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How to sample."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the ranks of a launch share the work."""
    request: RequestConfig = field(default_factory=RequestConfig)
    """Prompts and where the answers go."""


COMMANDS: dict[str, type] = {"rl": RlConfig, "sft": SftConfig, "eval": EvalConfig, "generate": GenerateConfig}
