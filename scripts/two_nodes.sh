#!/usr/bin/env bash
# GRPO over two nodes, both of them on this machine: two raylets on loopback, each with one logical GPU and a temporary
# folder of its own, and `segrl grpo preset=toy_cpu segrl.rule=rank` over trainer.nnodes=2. What it shows is the recipe
# for real nodes (docs/verl.md): there, `ray start --head` runs on the first and `ray start --address` on the second.
#
#   scripts/two_nodes.sh OUT [overrides]     LIMIT=600: seconds after which everything is ended
set -euo pipefail
out=${1:?usage: $0 OUT [overrides]}
shift
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
port=${RAY_PORT:-6399}
# Not 127.0.0.1, which Ray replaces by the address of the machine.
first=127.0.0.2 second=127.0.0.3
folder=$(mktemp -d /tmp/two-XXXXXX) # short: Ray's sockets lie here, and their paths may have 107 characters
raylets=()

# What `segrl grpo` would set for its own processes must be there when the raylets start: their workers inherit it.
export VERL_PLATFORM=cpu VERL_ENGINE_DEVICE=cuda VERL_USE_EXTERNAL_MODULES=segrl.verl OMP_NUM_THREADS=1 \
    TOKENIZERS_PARALLELISM=false GLOO_SOCKET_IFNAME=lo VLLM_HOST_IP=127.0.0.1 VLLM_CPU_KVCACHE_SPACE=1 \
    VLLM_CPU_OMP_THREADS_BIND=nobind RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1
# Whoever knows this cluster's token may run code on it, and nobody else: Ray's ports are open to the network.
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$("$python" -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_MODE RAY_AUTH_TOKEN
unset CUDA_VISIBLE_DEVICES # Ray refuses a logical GPU where it is set and empty

end() {
    for raylet in "${raylets[@]}"; do kill "$raylet" 2>/dev/null || true; done
    for raylet in "${raylets[@]}"; do wait "$raylet" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 143' TERM INT

# --block keeps the command itself alive, and its end takes the node's processes with it.
node() { # address of the node, then options
    timeout "${LIMIT:-600}" "$python" -m ray.scripts.scripts start --block --disable-usage-stats \
        --node-ip-address="$1" --num-cpus=16 --num-gpus=1 --object-store-memory=200000000 "${@:2}" \
        >"$folder/$1.log" 2>&1 &
    raylets+=($!)
}

nodes() { # wait until so many are there
    timeout 240 "$python" - "$first" "$port" "$1" <<'PYTHON'
import sys, time
import ray

address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ray.init(f"{address}:{port}", _node_ip_address=address, log_to_driver=False)
while sum(node["Alive"] and node["Resources"].get("GPU") == 1 for node in ray.nodes()) < count:
    time.sleep(0.5)
print(f"{count} nodes with a GPU each: {', '.join(node['NodeManagerAddress'] for node in ray.nodes())}", flush=True)
PYTHON
}

node "$first" --head --port="$port" --include-dashboard=false --temp-dir="$folder/1"
until "$python" -c "import socket; socket.create_connection(('$first', $port), 1)" 2>/dev/null; do
    kill -0 "${raylets[0]}" || { cat "$folder/$first.log"; exit 1; }
    sleep 0.5
done
node "$second" --address="$first:$port" --temp-dir="$folder/2"
nodes 2

# The sizes of the cluster are those that its nodes announced: ray.init takes none when it joins one.
RAY_ADDRESS="$first:$port" timeout "${LIMIT:-600}" "$python" -m segrl grpo preset=toy_cpu segrl.rule=rank out="$out" \
    trainer.nnodes=2 trainer.n_gpus_per_node=1 trainer.total_training_steps=2 \
    ray_kwargs.ray_init.num_gpus=null ray_kwargs.ray_init.num_cpus=null \
    ray_kwargs.ray_init.object_store_memory=null +ray_kwargs.ray_init._node_ip_address="$first" "$@"
