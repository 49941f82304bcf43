"""The decoder of model.py, faster: loops for a CPU, kernels and CUDA graphs for a GPU."""
