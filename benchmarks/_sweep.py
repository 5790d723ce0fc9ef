import sys; sys.path.insert(0, "."); sys.path.insert(0, "benchmarks")
import torch
from gpu_clock import time_in_stream
from gpu_moe import routed, EXPERTS, K
from seedthink.kernels import cuda
from seedthink.kernels.triton import grouped, fp8_matmul
from seedthink.kernels.triton.launch import config
part, parts = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (0, 1)
T, D, I = 32768, 2048, 768
weight, row, token, offsets = routed(T)
x = torch.randn(T, D, device="cuda").bfloat16()
gu = (torch.randn(EXPERTS, 2 * I, D, device="cuda") * D**-0.5).bfloat16()
dn = (torch.randn(EXPERTS, D, I, device="cuda") * I**-0.5).bfloat16().transpose(1, 2)
act = torch.empty(T * K, I, device="cuda", dtype=torch.bfloat16); out = torch.empty(T * K, D, device="cuda", dtype=torch.bfloat16)
hid = torch.empty(T * K, 2 * I, device="cuda", dtype=torch.bfloat16)
G = [(m, n, k, w, s) for m, n, k, w, s in [(128,128,64,8,4),(128,128,64,8,3),(128,64,64,8,4),(128,64,64,4,3),(128,64,64,4,4),(256,64,64,8,3),(64,128,64,4,3),(128,128,32,8,5)]]
N = [(128,128,64,8,4),(128,256,64,8,3),(128,256,64,8,4),(128,128,64,4,3),(128,128,64,4,4),(256,128,64,8,3),(64,256,64,4,3),(128,256,32,8,5)]
rows, cols, dep = 8192, 4096, 7168
PLAIN = ("e4m3", True, 1.0, [0.0, 1.0])
xq, xs = cuda.quantize(torch.randn(rows, dep, device="cuda").bfloat16(), None, [1, 128], *PLAIN)
wq, ws = cuda.quantize(torch.randn(cols, dep, device="cuda").bfloat16(), None, [128, 128], *PLAIN)
xq, wq = xq.view(torch.float8_e4m3fn), wq.view(torch.float8_e4m3fn)
F = [(128,128,8,3,8),(128,128,4,3,8),(128,128,4,4,8),(128,128,8,4,8),(64,128,4,4,8),(256,128,8,3,8),(128,128,8,5,8),(64,128,4,5,16),(128,64,4,4,8)]
jobs = []
for m, n, k, w, s in G:
    c = config("wgmma, chains of 16", warps=w, stages=s, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k)
    jobs.append((f"gate_up {m}x{n}x{k} w{w} s{s}", 4 * T * K * D * I, lambda c=c: grouped.gate_up_act(x, token, offsets, gu, None, act, config=c)))
    jobs.append((f"gate_up keep {m}x{n}x{k} w{w} s{s}", 4 * T * K * D * I, lambda c=c: grouped.gate_up_act(x, token, offsets, gu, hid, act, config=c)))
for m, n, k, w, s in N:
    c = config("wgmma, chains of 16", warps=w, stages=s, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k)
    jobs.append((f"down {m}x{n}x{k} w{w} s{s}", 2 * T * K * D * I, lambda c=c: grouped.rows_times_matrices(act, None, offsets, dn, out, config=c)))
for m, n, w, s, g in F:
    c = config("blocks of 128 k", warps=w, stages=s, BLOCK_M=m, BLOCK_N=n, GROUP=g)
    jobs.append((f"fp8 {m}x{n} w{w} s{s} g{g}", 2 * rows * cols * dep, lambda c=c: fp8_matmul.fp8_matmul(xq, xs, wq, ws, torch.bfloat16, config=c)))
act.normal_()
for name, flops, call in jobs[part::parts]:
    try:
        if parts > 1:
            call(); continue
        us = time_in_stream([call])["us"]
        print(f"{name:<34} {us:9.1f} us {flops/us/1e6:7.0f} TFLOP/s", flush=True)
    except Exception as e:
        print(name, type(e).__name__, str(e)[:100], flush=True)
if parts == 1:
    y = out[: T * K]
    import torch.nn.functional as f
    gt = gu.transpose(1, 2); ends = offsets[1:]; xg = x[token.long()]
    for nm, fl, c in [("grouped_mm gate_up", 4*T*K*D*I, lambda: torch._grouped_mm(xg, gt, offs=ends)), ("grouped_mm down", 2*T*K*D*I, lambda: torch._grouped_mm(act, dn, offs=ends))]:
        us = time_in_stream([c])["us"]; print(f"{nm:<34} {us:9.1f} us {fl/us/1e6:7.0f} TFLOP/s", flush=True)
