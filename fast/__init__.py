"""The decoder of model.py, faster: loops for a CPU, CUDA graphs and Triton kernels for a GPU."""
