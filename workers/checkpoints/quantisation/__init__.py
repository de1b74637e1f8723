"""How quantised weights are stored in safetensors files, one file a scheme."""
