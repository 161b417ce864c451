"""What the contenders of `train_step.py` do in a step: Bushcraft's own way, and that of each peer.

All have the same weights at first, and each rank of several reads its share of the rows of the same batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from bushcraft.model.attention import Segments
from bushcraft.model.config import ModelConfig
from bushcraft.objectives.batch import Batch
from bushcraft.parallel.batches import share
from bushcraft.parallel.box import Box
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.parallel_model import ParallelModel, Settings
from bushcraft.train.optimizer import Optimizer
from bushcraft.train.recipe import OptimizerConfig

Step = Callable[[], float]
"""One optimizer step; gives the loss before it, the mean over the whole batch."""
CPU = torch.device("cpu")
LEARNING_RATE, WEIGHT_DECAY, BETAS, MAX_NORM = 3e-4, 0.1, (0.9, 0.95), 1.0
SHAPE = ModelConfig(
    vocab_size=8192, d_model=512, n_layers=8, n_heads=8, n_kv_heads=4, d_ff=1536, qk_norm=False, norm_eps=1e-6
)
HF_NAMES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Our names of a block's parts, where they differ from transformers'; gate, up and down only add _proj."""


def ours(precision: str, shape: tuple[int, int], compile_it: bool) -> Step:
    """Bushcraft's own step, as the trainer does it: on several ranks with the weights cut over all of them."""
    n_ranks = dist.get_world_size() if dist.is_initialized() else 1
    mesh = Mesh(Layout(shard=n_ranks), CPU) if n_ranks > 1 else None
    compile_layers = (lambda model: model.compile_layers()) if compile_it else None
    model = ParallelModel(SHAPE, mesh, Settings(precision=precision), CPU, compile_layers)
    copy_weights(llama(), model)
    config = OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    optimizer = Optimizer(model.weights, config)
    batch = batch_of(*shape, n_ranks, mesh.rank if mesh else 0)
    n_targets = shape[0] * shape[1]

    def step() -> float:
        loss, _ = model.gradients([batch], n_targets)
        model.weights.clip(MAX_NORM)
        optimizer.step(LEARNING_RATE)
        model.weights.zero_gradients()
        return float(loss.detach())

    return step


def plain_loop(precision: str, shape: tuple[int, int], compile_it: bool) -> Step:
    """The loop that transformers' and PyTorch's documentation show."""
    model, batch = llama(), batch_of(*shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    forward = torch.compile(model) if compile_it else model

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def plain_fsdp(precision: str, shape: tuple[int, int], _compile_it: bool) -> Step:
    """The loop of torchtitan's trainer, around transformers' model as torchtitan's models/llama3/parallelize.py cuts
    one: FSDP2 over each block and the root, sums of gradients in fp32, no division of gradients by ranks."""
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    model, batch, n_targets = llama(), batch_of(*shape, n_ranks, rank), torch.tensor(shape[0] * shape[1])
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else torch.float32, reduce_dtype=torch.float32
    )
    mesh = init_device_mesh("cpu", (n_ranks,), mesh_dim_names=("fsdp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(
            input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets, num_items_in_batch=n_targets
        ).loss
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        assert isinstance(norm, DTensor)
        nn.utils.clip_grads_with_norm_(parameters, MAX_NORM, norm.full_tensor(), foreach=True)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss)
        return float(loss)

    return step


def llama() -> transformers.LlamaForCausalLM:
    """The peers' model, with the same random weights at each call."""
    config = transformers.LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.d_model,
        intermediate_size=SHAPE.d_ff,
        num_hidden_layers=SHAPE.n_layers,
        num_attention_heads=SHAPE.n_heads,
        num_key_value_heads=SHAPE.n_kv_heads,
        rms_norm_eps=SHAPE.norm_eps,
        rope_theta=SHAPE.rope_theta,
        tie_word_embeddings=SHAPE.tie_embeddings,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with seeded(0):
        return transformers.LlamaForCausalLM(config)


def copy_weights(source: transformers.LlamaForCausalLM, target: ParallelModel) -> None:
    """Give our model the peers' weights: of each what this rank holds."""
    theirs = source.state_dict()
    for name, part in target.weights.parts().items():
        part.tensor.copy_(theirs[hf_name(name)][part.box.within(Box.whole(part.global_shape))])


def hf_name(name: str) -> str:
    """What transformers calls our parameter."""
    match name.split("."):
        case ["layers", index, *part, "weight"]:
            ours_ = ".".join(part)
            return f"model.layers.{index}.{HF_NAMES.get(ours_, f'{ours_}_proj')}.weight"
        case ["embedding", _]:
            return "model.embed_tokens.weight"
        case _:
            return "model.norm.weight"


def batch_of(n_rows: int, width: int, n_ranks: int = 1, rank: int = 0) -> Batch:
    """A rank's share of random tokens; every row is one document, for the peers know no others."""
    with seeded(0):
        tokens = torch.randint(SHAPE.vocab_size, (n_rows, width + 1))
    begin, end = share(n_rows, n_ranks, rank)
    tokens = tokens[begin:end]
    row = torch.arange(end - begin, dtype=torch.int32)
    zeros = torch.zeros_like(row)
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        loss_weights=torch.ones(end - begin, width),
        segments=Segments(row=row, start=zeros, prefix_length=zeros, length=torch.full_like(row, width)),
    )


@contextmanager
def seeded(seed: int) -> Iterator[Tensor]:
    """torch's generator from `seed` on, inside the block alone."""
    before = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        yield before
    finally:
        torch.set_rng_state(before)
