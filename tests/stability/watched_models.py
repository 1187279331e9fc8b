"""Small models that are watched, steps of their training, and what is looked at afterwards."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from legato.stability.watch import watch

VOCABULARY = 11


class Block(nn.Module):
    """Pre-norm attention and MLP, causal."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def queries_and_keys(self, x):
        return self.joint(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        q, k, v = self.queries_and_keys(x)
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class Decoder(nn.Module):
    """A language model of a few thousand weights."""

    def __init__(self, width=16, layers=2, heads=2, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Encoder(nn.Module):
    """Torch's own encoder, whose attention is nn.MultiheadAttention with dropout."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


def made(kind=Decoder, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return kind(**options).to(dtype)


def tokens(seed=0, rows=4, length=9):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model, batch):
    output = model(batch[:, :-1])
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def adam(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.01, **options})


def step(model, optimizer, batch, clip=None):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


def rms(tensor):
    return float(tensor.detach().double().square().mean().sqrt())


def hooks(model, optimizer):
    """Everything that a hook could have been left in."""
    kept = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called",
            "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"]  # fmt: skip
    found = [(name, kind) for name, module in model.named_modules() for kind in kept if getattr(module, kind)]
    return found, len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


def trained(model, steps, watched, **options):
    """What is left after some steps: weights, moments, losses, and the state of the random numbers."""
    model, torch_state = copy.deepcopy(model), torch.manual_seed(1)
    optimizer, losses = adam(model), []
    if watched:
        with watch(model, optimizer, **options):
            losses = [step(model, optimizer, tokens(seed), clip=1.0) for seed in range(steps)]
    else:
        losses = [step(model, optimizer, tokens(seed), clip=1.0) for seed in range(steps)]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.state_dict().values(), *moments, torch.stack(losses), torch_state.get_state()]
