"""What the merge stage is made of: LoRA's arithmetic, the plan, the writing of shards, the proof of the result."""
