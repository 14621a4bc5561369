"""What storing a merge in the base's dtype loses: `python docs/merge_records.py`.

A 1024 x 1024 weight (std 0.02) and a LoRA update of rank 8, scaled to a share of its norm, merged in three dtypes.
"""

from __future__ import annotations

import torch
from torch import nn

import surgery

SHARES = (0.001, 0.008, 0.05)


def main() -> None:
    registry = surgery.load_registry()
    print("dtype     |dW|/|W|   stored dW is off by   elements that did not move   changed after unmerge")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for share in SHARES:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(1024, 1024, bias=False))
            nn.init.normal_(model[0].weight, std=0.02)
            model.to(dtype)
            before = model[0].weight.detach().clone()
            rule = surgery.Rule(target="0", adapter="lora", rank=8, alpha=8)
            op = surgery.operate(model, surgery.plan(surgery.Spec(name="d", rules=[rule]), model, registry))
            with torch.no_grad():
                a, b = op.trainable().values()
                b.normal_()
                b.mul_(share * before.float().norm() / (b @ a).norm())
            (record,) = op.merge()
            op.unmerge()
            view = torch.int16 if dtype.itemsize == 2 else torch.int32
            changed = int((model[0].weight.detach().view(view) != before.view(view)).sum())
            print(
                f"{str(dtype)[6:]:<9} {record.delta_rel:8.2%} {record.realised_delta_rel_err:18.2g}"
                f" {record.unmoved:26.2%} {changed:24}"
            )


if __name__ == "__main__":
    main()
