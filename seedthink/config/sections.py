"""The sections of a recipe: one frozen dataclass each, shared by the commands that have that section.

The sentence under a field documents it, with its unit; `seedthink config explain KEY` prints it. Every default runs. A
section that one command extends is a subclass, so no command offers a key that means nothing to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from seedthink.config.fields import Amount, Count, Fraction, Positive, PositiveAmount, Share

Knob = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of problems: a puzzle family generated on the spot, or a file."""

    kind: Literal["puzzle", "jsonl", "parquet"] = "puzzle"
    """Where problems come from: "puzzle" (generated), "jsonl" or "parquet" (a file of yours)."""
    family: str = ""
    """Puzzle family, or for files the name that chooses the verifier and labels the metrics."""
    path: str = ""
    """File to read (jsonl, parquet)."""
    prompt_field: str = "prompt"
    """Field that holds the problem: a text, or a list of chat messages (files)."""
    answer_field: str = "answer"
    """Field that holds the reference answer for the verifier (files)."""
    response_field: str = "response"
    """Field that holds the text to imitate (files, sft only)."""
    weight: PositiveAmount = 1.0
    """Share of this source in the mixture, relative to the other weights."""
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    """Difficulty knobs of the puzzle family; in a recipe they stand beside the other keys of the source."""


@dataclass(frozen=True, kw_only=True)
class RunFolderConfig:
    """Where the results of a command stand."""

    name: str = ""
    """Name of the run folder; empty takes the recipe's folder name, or the command's."""
    folder: str = "runs"
    """Folder that holds run folders."""
    seed: Count = 0
    """Seed of everything drawn: initial weights, problems, samples."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunFolderConfig):
    """Where the results stand, and when training stops."""

    steps: Count = 100
    """Optimisation steps (rl: rollout batches); 0 leaves the end to time_limit_minutes (sft: to data.epochs)."""
    time_limit_minutes: Amount = 0.0
    """Stop after this much training time, in minutes; 0 sets no limit."""
    resume: Literal["auto", "fresh", "changed"] = "auto"
    """"auto" goes on from the newest checkpoint and stops when settings differ, "changed" goes on with the new
    settings, "fresh" moves an earlier run aside and starts over."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its numbers are computed."""

    path: str = ""
    """Folder of a Hugging Face model (config.json, safetensors, tokenizer)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Operands of matrix products and the KV cache; sums and master weights are float32."""
    threads: Count = 0
    """CPU threads of the engine; 0 takes the cores this process may use."""
    tuner: Literal["off", "table", "online"] = "table"
    """Launch settings of the kernels: built in ("off"), as measured for this device where it has a table ("table"), or
    learned as the run goes ("online"). No choice changes a result."""


@dataclass(frozen=True, kw_only=True)
class EvalDataConfig:
    """Held-out problems, and what to do with prompts that do not fit."""

    eval: tuple[SourceConfig, ...] = ()
    """Sources of held-out problems; those that also stand in the training data are refused."""
    max_prompt_tokens: Positive = 1024
    """Longest prompt, in tokens."""
    overlong: Literal["skip", "error"] = "skip"
    """A prompt that is longer is skipped and counted, or ends the run; it is never cut."""
    system: str = ""
    """System message put before every problem that has none (files only)."""


@dataclass(frozen=True, kw_only=True)
class RlDataConfig(EvalDataConfig):
    """Problems to learn from by reinforcement."""

    train: tuple[SourceConfig, ...] = ()
    """Sources of training problems, mixed by weight."""
    prompts_per_step: Positive = 16
    """Problems per step; each is sampled rollout.group_size times."""


@dataclass(frozen=True, kw_only=True)
class SftDataConfig(EvalDataConfig):
    """Texts to imitate."""

    train: tuple[SourceConfig, ...] = ()
    """Sources of training texts, mixed by weight."""
    batch_tokens: Positive = 8192
    """Tokens per optimisation step, prompts included."""
    max_length: Positive = 2048
    """Longest prompt plus response, in tokens; data.overlong says what happens to longer ones."""
    epochs: Amount = 1.0
    """Passes over the training texts, used when run.steps is 0."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to sample, and how much memory sampling may take."""

    max_tokens: Positive = 256
    """Longest answer, in tokens; a longer one is truncated and counted."""
    temperature: Amount = 1.0
    """Softmax temperature; 0 is greedy."""
    top_k: Count = 0
    """Keep the k likeliest tokens; 0 keeps all. RL refuses cuts: they change the behaviour policy."""
    top_p: Share = 1.0
    """Keep the likeliest tokens that together reach this probability; 1 keeps all. RL refuses cuts."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's end-of-sequence tokens."""
    max_batch_tokens: Positive = 2048
    """Tokens one scheduling step may process: prompt chunks plus one per running sequence."""
    max_sequences: Positive = 256
    """Sequences running at once."""
    kv_memory_mib: Positive = 256
    """Memory for the KV cache, in MiB; sequences wait or are preempted when it is full."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(GenerationConfig):
    """How experience is gathered."""

    group_size: Positive = 8
    """Answers sampled per problem."""
    deadline_seconds: PositiveAmount = 600.0
    """Longest wait without a finished answer, in seconds; then the run stops and says who owed what."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Who judges an answer."""

    function: str = ""
    """Your own reward as "module:function"; empty chooses a verifier by the problem's family."""
    verifiers: Mapping[str, str] = field(default_factory=dict)
    """Family -> verifier, where the family's name alone does not choose the right one."""
    workers: Positive = 2
    """Processes that run verifiers."""
    timeout_seconds: PositiveAmount = 10.0
    """A verifier running longer, in seconds, is killed; the sample counts as a timeout, never as a wrong answer."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: PositiveAmount = 1e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the running mean and of the running square of the gradient."""
    eps: PositiveAmount = 1e-8
    """Added to the denominator of the update."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay, per step and unit of learning rate; norms and biases are left out."""
    grad_clip: Amount = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    warmup_steps: Count = 0
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after warm-up."""
    min_lr_ratio: Fraction = 0.0
    """Learning rate at the end of a cosine or linear schedule, as a fraction of lr."""


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Keeping the experts of each sparse layer evenly used, in policy and critic."""

    balance_loss: Amount = 0.0
    """Weight of the load-balancing loss, of which an even layer scores 1; layers are summed. Above 0 a step first runs
    the trunk once more without gradients, to count the tokens of the whole mini-batch."""
    z_loss: Amount = 0.0
    """Weight of the mean squared log-sum-exp of the router's logits, which keeps them small; layers are summed."""
    bias_update_rate: Amount = 0.0
    """How far a step moves the bias by which experts are chosen, up for experts below the mean load and down for those
    above; for families that store such a bias (deepseek_v3)."""


@dataclass(frozen=True, kw_only=True)
class ValuePretrainingConfig:
    """Teaching the critic on the frozen start policy before the policy moves."""

    max_steps: Count = 100
    """Most rollout batches to spend; 0 leaves value pretraining out."""
    explained_variance: Fraction = 0.4
    """Held-out explained variance to reach before it may end."""
    evaluations: Positive = 5
    """Measurements over which explained variance must stay flat before it may end."""
    evaluate_every: Positive = 5
    """Steps between measurements of the held-out explained variance."""
    held_out_batches: Positive = 4
    """Rollout batches kept apart to measure explained variance on."""
    critic_path: str = ""
    """Folder of a stored critic to start from instead; a critic trained here is stored in the run folder."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How one optimisation step is cut up."""

    micro_batch_tokens: Positive = 8192
    """Tokens per forward and backward pass; smaller takes less memory and changes no result."""
    max_skipped_steps: Count = 5
    """Steps in a row that may be skipped for a loss or gradient that is not finite before the run stops."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What learning keeps in memory, and where. No choice changes a result."""

    recompute: Literal["none", "selective", "layers"] = "none"
    """What the backward pass makes again instead of keeping it: nothing, norms, attention's operands and activations
    ("selective": no product is repeated), or whole blocks ("layers": about one forward pass more)."""
    recompute_every: Positive = 1
    """Recompute in every n-th block: 1 saves most memory, 2 keeps every second block's tensors and saves time."""
    offload_activations: bool = False
    """Keep what the backward pass needs in pinned host memory meanwhile; needs a model on a device."""
    offload_optimizer: bool = False
    """Keep AdamW's moments in pinned host memory, moved to the device one parameter at a time; needs a device."""


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Who runs the loop, and how patient it is."""

    kind: Literal["ray", "local"] = "ray"
    """"ray": worker processes under Ray; "local": everything in this process."""
    restarts: Count = 2
    """Times a dead worker is restarted from the last checkpoint before the run stops."""
    heartbeat_seconds: PositiveAmount = 5.0
    """Interval, in seconds, at which workers report that they live."""
    step_deadline_seconds: PositiveAmount = 1800.0
    """Longest wait for any worker's answer, in seconds; the message then says who waits for whom."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks that torchrun or mpirun started share the work: ranks = dp_replicate * dp_shard * cp * tp."""

    dp_replicate: Positive = 1
    """Copies of everything, each with batches of its own."""
    dp_shard: Count = 0
    """Ranks with batches of their own that share one copy of weights and optimizer; 0 takes the ranks that remain."""
    cp: Positive = 1
    """Ranks that share each sequence (context parallel)."""
    tp: Positive = 1
    """Ranks that share each matrix (tensor parallel)."""
    ep: Positive = 1
    """Ranks that share the experts, borrowed from dp_shard * cp * tp (expert parallel)."""
    numerics: Literal["exact", "fast"] = "exact"
    """"exact" gives an answer the same bits under every layout; "fast" would trade them for speed."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How accuracy on held-out problems is measured."""

    problems: Positive = 200
    """Held-out problems, over all families."""
    samples: Positive = 4
    """Answers per problem: accuracy is their mean (avg@k), pass@k counts problems with a right one."""
    thinking: Literal["free", "empty"] = "free"
    """"empty" opens and closes the think block before the model answers, to measure what thinking is worth."""


@dataclass(frozen=True, kw_only=True)
class PeriodicEvaluationConfig(EvaluationConfig):
    """Evaluation before, during and after training."""

    every_steps: Count = 0
    """Steps between evaluations; 0 evaluates before the first and after the last step only."""
    temperature: Amount = 1.0
    """Sampling temperature of evaluations; the other sampling settings are those of training."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept."""

    every_steps: Count = 50
    """Steps between checkpoints; 0 keeps only the one at the end."""
    keep: Positive = 2
    """Newest checkpoints kept on disk."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported Hugging Face model."""


@dataclass(frozen=True, kw_only=True)
class RequestConfig:
    """What `seedthink generate` answers, and where the answers go."""

    prompt: str = ""
    """A prompt; "-" reads one from standard input."""
    input: str = ""
    """JSONL file of prompts, one object with "prompt" per line."""
    output: str = ""
    """JSONL file for the answers; empty prints them."""
    chat: Literal["auto", "off"] = "auto"
    """"auto" renders prompts with the model's chat template where it has one; "off" passes the text as it is."""
    samples: Positive = 1
    """Answers per prompt."""
    seed: Count = 0
    """Seed of the samples: the same seed gives the same tokens, whatever else is in the batch."""
