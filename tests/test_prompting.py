import torch

from collectionlora.backbones.base import Prompt
from collectionlora.prompting.triggers import cosine_table


def test_what_all_prompts_share_does_not_count_as_likeness():
    template = 10 * torch.ones(6, 4)
    words = {"a": [1.0, 0, 0, 0], "b": [0, 1.0, 0, 0], "c": [0, 2.0, 0, 0], "": [0, 0, 0, 0]}

    def encode(prompts):
        tokens = torch.stack([torch.cat([template, torch.tensor([words[p]])]) for p in prompts])
        return Prompt(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    table = cosine_table(encode, ["a", "b", "c"])
    torch.testing.assert_close(table, torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 1, 1]]), atol=1e-4, rtol=0)
