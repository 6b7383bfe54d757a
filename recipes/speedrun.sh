#!/usr/bin/env bash
# Nothing -> data -> align -> codec -> pretrain -> SFT -> draft heads -> RLHF -> evaluate -> serve -> a spoken exchange.
#
#   bash recipes/speedrun.sh [OUT]
#
# Toy size, two cores, minutes: every stage is the one that trains the model that ships, on a toy's recipe and on speech
# that the first line makes (`tristep.corpus.babble`). Each prints what it has learnt, before -> after, and the run ends
# there if a stage has missed its bar. A run that was stopped goes on where it was.
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-runs/speedrun}
python=${PYTHON:-$repo/.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # a toy's matrices are too small to share
mkdir -p "$out" && cd "$out"
ln -sfn "$repo/weights" weights  # CAM++ is the only thing that is not trained here
printf 'stage\tmeasure\tbefore\tafter\tseconds\n' > summary.tsv

say() { began=$SECONDS; printf '\n%s  %s\n' "$(date +%T)" "$*"; }
note() { printf '%s\t%d\n' "$1" $((SECONDS - began)) >> summary.tsv; }
tristep() { "$python" -m tristep "$@"; }
learn() {  # learn RECIPE RUN BAR
    say "$(sed -n '1s/^# toy, //p' "$repo/recipes/toy/$1.toml")"
    tristep train "$repo/recipes/toy/$1.toml" --out "runs/$2" --data data > "$2.log" 2>&1 || { tail -3 "$2.log"; exit 1; }
    "$python" -m tristep.training.learnt "runs/$2"
    row=$("$python" -m tristep.training.learnt "runs/$2" --bar "$3" --row)
    note "$row"
}
field() { "$python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
wer() {  # wer MODEL NAME: on held-out babble
    tristep evaluate asr --manifest data/babble/manifest.jsonl --split dev --model "$1" --out "$2.json" > "$2.log" 2>&1
    "$python" -c 'import json, sys; print(round(json.load(open(sys.argv[1]))["suites"][0]["rate"], 3))' "$2.json"
}

say "data: toy speech, letters as buzzes"
"$python" -m tristep.corpus.babble --out data/babble --clips 600
note "data	clips	0	600"
learn 1_align align "ctc_wer < 0.1"

learn 0_codec_tokenizer tokenizer "phone_accuracy > 0.7"
learn 0_codec_flow flow "guess < 0.5"
learn 0_codec_vocoder vocoder "spectral < before"
mkdir -p model/codec
cp "$repo/src/tristep/configs/codec-toy.toml" model/codec/codec.toml
cp weights/nano/codec/speaker.safetensors runs/{tokenizer/tokenizer,flow/flow,vocoder/vocoder}.safetensors model/codec

learn 2_pretrain pretrain "next_token < 0.5"
say "utterances: words, and the codes of their sound"
"$python" -m tristep.corpus.utterances data/babble/manifest.jsonl --max-clips 400 \
    --backbone runs/align/model --codec model/codec --out data/babble/utterances.jsonl 2> utterances.log
note "utterances	clips	0	$(wc -l < data/babble/utterances.jsonl)"
learn 3_sft sft "code < 1.5"
learn 4_drafts drafts "draft_1 < before"
learn 5_rlhf_asr rlhf_asr "wer_en < 0.2"
learn 5_rlhf_tts rlhf_tts "reward/obedience > before"

say "ship: one checkpoint that listens and speaks"
"$python" -m tristep.training.ship --asr runs/rlhf_asr/model --tts runs/rlhf_tts/model --out shipped
cp -r model/codec shipped

say "evaluate: held-out babble"
before=$(wer runs/align/model untrained)
after=$(wer shipped report)
echo "word error rate $before -> $after"
note "evaluate	WER	$before	$after"
awk "BEGIN { exit !($after < 0.2) }" || { echo "the toy hears too badly: report.json says what"; exit 1; }

say "serve: OpenAI's API on this machine"
"$python" -m tristep serve --model shipped --port 0 --voices voices > serve.log 2> serve.err &
server=$!
trap 'kill $server' EXIT
until grep -qs 'is served at' serve.log; do kill -0 $server || { tail -3 serve.err; exit 1; }; sleep 0.2; done
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
level=$("$python" -c 'import soundfile; print(round(float(abs(soundfile.read("answer.wav")[0]).max()), 3))')
note "exchange	peak of the answer	0	$level"
awk "BEGIN { exit !($level > 0.02) }" || { echo "answer.wav is silent"; exit 1; }

printf '\n'
column -t -s $'\t' summary.tsv
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $out"
