# What the examples talk to, started from what `make demo` and `make backends` put into the cache. From the top of the checkout:
#   source examples/servers.sh llama            Jaeger and llama.cpp's server with the small model
#   source examples/servers.sh ollama           Jaeger and Ollama with the small model
# They end with this shell. The usual ports are taken unless these say otherwise: JAEGER_PORT, OTLP_PORT, LLAMA_PORT, OLLAMA_PORT.
# Ollama listens on 11435 here, beside one that you may have. VENV is another environment than .venv.
cache=${OTEL_LLM_ENERGY_CACHE:-$HOME/.cache/otel-llm-energy}
logs=$(mktemp -d)
PATH=$PWD/${VENV:-.venv}/bin:$(printf '%s:' "$cache"/*-[0-9]*/)$PATH
trap _end EXIT

_end() {  # while they end they still write; a Collector whose back end is away takes minutes
    kill $(jobs -p) 2>/dev/null || true
    for _ in $(seq 50); do
        [ -z "$(jobs -rp)" ] && break
        sleep 0.1
    done
    kill -9 $(jobs -rp) 2>/dev/null || true
    wait || true
    rm -rf "$logs"
}

_await() {  # _await URL NAME LOG
    for _ in $(seq 120); do
        curl -s -o /dev/null "$1" && return
        sleep 0.5
    done
    echo "$2 does not answer at $1:" >&2
    tail -20 "$3" >&2
    return 1
}

export OTLP_HTTP=127.0.0.1:${OTLP_PORT:-4318} OTLP_GRPC=127.0.0.1:${OTLP_GRPC_PORT:-4317} JAEGER_HTTP=127.0.0.1:${JAEGER_PORT:-16686}
jaeger --config collector-config/jaeger.yaml >"$logs/jaeger" 2>&1 &
export OTEL_EXPORTER_OTLP_ENDPOINT=http://$OTLP_HTTP OTEL_METRICS_EXPORTER=none JAEGER=http://$JAEGER_HTTP

for server in "$@"; do
    case $server in
    llama)
        python -m otel_llm_energy.cli.model_server --model "$cache/SmolLM2-135M-Instruct.Q4_1.gguf" --slots 2 --embeddings \
            --port "${LLAMA_PORT:-8081}" </dev/null >"$logs/llama" 2>&1 &
        export OPENAI_BASE_URL=http://127.0.0.1:${LLAMA_PORT:-8081}/v1 OPENAI_API_KEY=unused
        _await "$OPENAI_BASE_URL/models" llama.cpp "$logs/llama"
        ;;
    ollama)
        export OLLAMA_HOST=127.0.0.1:${OLLAMA_PORT:-11435} OLLAMA_MODELS=$logs/models
        ollama serve >"$logs/ollama" 2>&1 &
        _await "http://$OLLAMA_HOST/api/version" Ollama "$logs/ollama"
        printf 'FROM %s\nPARAMETER num_thread 1\n' "$cache/SmolLM2-135M-Instruct.Q4_1.gguf" >"$logs/Modelfile"
        ollama create smollm2 -f "$logs/Modelfile" >/dev/null 2>&1
        ;;
    esac
done
_await "$JAEGER/api/services" Jaeger "$logs/jaeger"
