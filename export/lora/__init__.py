"""LoRA adapters of peft, merged into a checkpoint while its weights stream through.

    merged(open_checkpoint("base"), [open_adapter("lora", 0.5)])

``asked`` reads what a user wrote, ``config`` and ``adapter`` what lies in the folder, ``targets``
has peft's rules of which module is meant, ``changes`` what is done to a tensor, ``merging`` joins
them with a checkpoint. What comes out is a ``Checkpoint`` like any other.
"""
