import sys; sys.path.insert(0, "."); sys.path.insert(0, "benchmarks")
import torch
import gpu_gae, gpu_moe
from seedthink.kernels import cuda
b = gpu_gae.Batch([4096] * 8192, True)
c = gpu_gae.Batch([8192] * 512, True)
a = torch.randn(4096, 128, device="cuda"); s = torch.randn(64, 128, device="cuda"); g = torch.randn(8192, 256, device="cuda")
bias = 0.1 * torch.randn(256, device="cuda")
k1, k2 = gpu_gae._kernel(b), gpu_gae._kernel(c)
y = torch.randn(65536, 2048, device="cuda").bfloat16()
r = cuda.route(torch.randn(8192, 128, device="cuda"), 8, "softmax", True, 1.0, None, 1, 1)
for _ in range(2):
    k1(); k2()
    cuda.route(s, 8, "softmax", True, 1.0, None, 1, 1)
    cuda.route(a, 8, "softmax", True, 1.0, None, 1, 1)
    cuda.route(g, 8, "sigmoid", True, 2.5, bias, 8, 4)
    cuda.unpermute(y, r[0], r[4], r[5])
torch.cuda.synchronize()
