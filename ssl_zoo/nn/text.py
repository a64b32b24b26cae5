"""Words for a network: open_clip's byte-pair encoding and its text transformer (the extra `clip`)."""

import os
from array import array
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_zoo.errors import UserError

VOCABULARY = 49408
END = VOCABULARY - 1  # of every sentence: where CLIP reads its meaning


def open_clip() -> ModuleType:
    """The package, without its asking the network for anything; UserError where it is not installed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import open_clip
    except ImportError as e:
        raise UserError("Methods with words need the package open_clip: pip install 'ssl-zoo[clip]'.") from e
    return open_clip


def tokenize(sentences: Iterable[str], context: int) -> tuple[Tensor, Tensor]:
    """Token ids int32 [N, context], 0 behind the end of each sentence, and which sentences are longer and cut, bool [N]. A sentence that
    spells out begin or end ("<end_of_text>") does not begin or end there.
    """
    encode = open_clip().tokenizer.SimpleTokenizer().encode
    rows, cut = array("i"), array("b")
    for sentence in sentences:
        ids = [i for i in encode(sentence) if i < END - 1]
        cut.append(len(ids) > context - 2)
        ids = [END - 1, *ids[: context - 2], END]
        rows.extend(ids + [0] * (context - len(ids)))
    return torch.from_numpy(np.array(rows, dtype=np.int32)).view(-1, context), torch.from_numpy(np.array(cut, dtype=bool))


class TextTower(nn.Module):
    """open_clip's text transformer: token ids [B, context] -> embeddings [B, embed_dim].

    CLIP's reads the word before under a causal mask and takes the output at the end of the sentence; SigLIP's (causal=False) reads all
    at once, is told what is padding by its zeros, and takes the last output through a projection with bias. quick_gelu: x sigmoid(1.702 x),
    as OpenAI's have it, in place of GELU.
    """

    def __init__(
        self,
        embed_dim: int,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        context: int = 77,
        quick_gelu: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"method.text.width={width} is no multiple of method.text.heads={heads}: choose them so that it is.")
        if context < 3:
            raise UserError(f"method.text.context={context} holds no word between begin and end: set it to 3 or more.")
        self.context, self.causal, self.quick_gelu = context, causal, quick_gelu
        options: dict[str, Any] = {"no_causal_mask": not causal, "proj_bias": not causal, "pool_type": "argmax" if causal else "last"}
        transformer = open_clip().transformer
        options["act_layer"] = transformer.QuickGELU if quick_gelu else nn.GELU
        self.net = transformer.TextTransformer(context, VOCABULARY, width, heads, layers, output_dim=embed_dim, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)
