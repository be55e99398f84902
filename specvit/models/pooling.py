"""From tokens to one vector a spectrum. Legend: B batch, S sequence with prefix, D width."""

from torch import Tensor, nn


class ClsPool(nn.Module):
    """The CLS token, the first of the sequence."""

    num_prefix_tokens = 1

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """Return (B, D)."""
        return tokens_BSD[:, 0]

    def weights(self, tokens_BSD: Tensor) -> Tensor:
        """Return the weight of each token (B, S): 1 for the first."""
        weights_BS = tokens_BSD.new_zeros(tokens_BSD.shape[:2])
        weights_BS[:, 0] = 1.0
        return weights_BS


class MeanPool(nn.Module):
    """The mean over tokens."""

    num_prefix_tokens = 0

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """Return (B, D)."""
        return tokens_BSD.mean(dim=1)

    def weights(self, tokens_BSD: Tensor) -> Tensor:
        """Return the weight of each token (B, S): the same for all."""
        return tokens_BSD.new_full(tokens_BSD.shape[:2], 1 / tokens_BSD.shape[1])


class AttentionPool(nn.Module):
    """A weighted mean over tokens, by a learned score; initially the plain mean."""

    num_prefix_tokens = 0

    def __init__(self, hidden_size: int) -> None:
        """One score a token."""
        super().__init__()
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """Return (B, D)."""
        return (self.weights(tokens_BSD)[:, :, None] * tokens_BSD).sum(dim=1)

    def weights(self, tokens_BSD: Tensor) -> Tensor:
        """Return the weight of each token (B, S)."""
        return self.score(tokens_BSD).float().softmax(dim=1).type_as(tokens_BSD).squeeze(2)


def build_pool(name: str, hidden_size: int) -> ClsPool | MeanPool | AttentionPool:
    """Return the pooling called `name` in the configuration."""
    return {"cls": ClsPool, "mean": MeanPool, "attention": lambda: AttentionPool(hidden_size)}[name]()
