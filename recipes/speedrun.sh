#!/usr/bin/env bash
# Nothing -> data -> align -> codec -> pretrain -> SFT -> draft heads -> RLHF -> evaluate -> serve -> a spoken exchange.
#
#   bash recipes/speedrun.sh [OUT] [STEPS]
#
# Toy size, two cores, minutes: every stage is the one that trains the model that ships, on a toy's recipe and on speech
# that the first line makes (`tristep.corpus.babble`). Each prints what it has learnt, before -> after. STEPS cuts every
# stage short, to see only that the whole chain runs. A run that was stopped goes on where it was.
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-runs/speedrun}
cut=${2:+--steps $2}
python=${PYTHON:-$repo/.venv/bin/python}
mkdir -p "$out" && cd "$out"
ln -sfn "$repo/weights" weights  # CAM++ is the only thing that is not trained here

say() { printf '\n%s  %s\n' "$(date +%T)" "$*"; }
tristep() { "$python" -m tristep "$@"; }
learn() {  # learn RECIPE RUN
    say "$(sed -n '1s/^# toy, //p' "$repo/recipes/toy/$1.toml")"
    # shellcheck disable=SC2086
    tristep train "$repo/recipes/toy/$1.toml" --out "runs/$2" --data data $cut 2> "$2.log" || { tail -3 "$2.log"; exit 1; }
    "$python" -m tristep.training.learnt "runs/$2"
}
field() { "$python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

say "data: toy speech, letters as buzzes and hisses"
"$python" -m tristep.corpus.babble --out data/babble --clips 400
learn 1_align align

learn 0_codec_tokenizer tokenizer
learn 0_codec_flow flow
learn 0_codec_vocoder vocoder
mkdir -p model/codec
cp "$repo/src/tristep/configs/codec-toy.toml" model/codec/codec.toml
cp weights/nano/codec/speaker.safetensors runs/{tokenizer/tokenizer,flow/flow,vocoder/vocoder}.safetensors model/codec

say "utterances: words, and the codes of their sound"
"$python" -m tristep.corpus.utterances data/babble/manifest.jsonl \
    --backbone runs/align/model --codec model/codec --out data/babble/utterances.jsonl 2> utterances.log
learn 2_pretrain pretrain
learn 3_sft sft
learn 4_drafts drafts
learn 5_rlhf_asr rlhf_asr
learn 5_rlhf_tts rlhf_tts

say "ship: one checkpoint that listens and speaks"
"$python" -m tristep.training.ship --asr runs/rlhf_asr/model --tts runs/rlhf_tts/model --out shipped
cp -r model/codec shipped

say "evaluate: held-out babble"
tristep evaluate asr --manifest data/babble/manifest.jsonl --split dev --model shipped --out report.json 2> evaluate.log

say "serve: OpenAI's API on this machine"
"$python" -m tristep serve --model shipped --port 0 --voices voices > serve.log 2> serve.err &
server=$!
trap 'kill $server' EXIT
until grep -q 'is served at' serve.log; do kill -0 $server || { tail -3 serve.err; exit 1; }; sleep 0.2; done
api=$(grep -o 'http://[^ ]*/v1' serve.log)/audio
voice=data/babble/audio/voice.wav
consent=$(curl -sf "$api/voice_consents" -F name=babble -F language=en -F recording=@$voice | field id)
curl -sf "$api/voices" -F name=babble -F "consent=$consent" -F audio_sample=@$voice | field id
hear() { curl -sf "$api/transcriptions" -F model=shipped -F "file=@$1" | field text; }

say "a spoken exchange"
question=data/babble/audio/babble_0009.wav
heard=$(hear $question)
echo "you say:         $("$python" -c 'import json; print(json.loads(open("data/babble/manifest.jsonl").readlines()[9])["text"])')"
echo "it hears:        $heard"
curl -sf "$api/speech" -H 'Content-Type: application/json' -o answer.wav \
    -d "{\"model\": \"shipped\", \"voice\": \"babble\", \"input\": \"${heard:-amu}\", \"response_format\": \"wav\"}"
echo "it says it back: answer.wav, in which it hears: $(hear answer.wav)"
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $out"
