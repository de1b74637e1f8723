"""From the files of a checkpoint to the tensors of a rank."""
