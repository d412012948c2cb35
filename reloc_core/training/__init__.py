"""What every training needs: seeded streams, checkpoints to resume from, processes, a step loop.

    streams      random generators by purpose; nothing of them has to be saved
    packing      modules and optimizer states as flat tensors
    checkpoint   stages, steps and notes of a training in one file
    loop         the steps of one stage
    ranks        which process of a distributed training this is
    processes    one training on several devices (torchrun)

`streams`, `checkpoint` and `ranks` import no PyTorch before they need it; the other modules do.
"""
