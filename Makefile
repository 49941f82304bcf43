# make demo       build a voice from nothing, on a CPU: corpus, training, pictures, wavs, scores
#                 LANGUAGE=de (or es, fr, it) speaks that language, PHONEMES=none trains on letters
# make my_voice RECORDINGS=DIR   fine-tune the demo's voice on your own recordings; LANGUAGE and
#                 PHONEMES choose which demo's
# make rehearsal  train the reference recipe at full size, on sentences as long as LJSpeech's
# make test       run the tests; LJSPEECH_DIR=... adds those on real speech
# make test_latest   run the tests on the newest versions that requirements/dev.txt allows
# make mutants    break the code in many places, one at a time; list the breaks that no test notices
# make lint       run ruff
# make bench      compare speed and memory with torchaudio's Tacotron2
# make bench_gpu  do the same at a GPU's sizes, and measure training from loader to optimizer
# make lock       update requirements.lock to the newest versions that requirements/dev.txt allows
# Each sets up .venv first if it is missing: from requirements.lock where that is known to work
# (Linux, Python 3.10 to 3.13), otherwise, or with LOCKED=no, from the ranges of requirements/dev.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED := yes

# SVOX Pico speaks the corpora, espeak-ng where there is no Pico; ENGINE=espeak chooses it.
SPEAKER := $(if $(ENGINE),--engine $(ENGINE))

# LANGUAGE counts only where it is given to make: systems set it to the language of their menus.
DEMO_LANGUAGE := $(if $(filter command,$(origin LANGUAGE)),$(filter-out en,$(LANGUAGE)))
DEMO_SPEAKER := $(SPEAKER) $(addprefix --language ,$(DEMO_LANGUAGE))
DEMO_CORPUS := demo$(addprefix _,$(DEMO_LANGUAGE))
# A voice of this few minutes is easier to understand if it need not learn to read letters.
PHONEMES := espeak
DEMO := $(DEMO_CORPUS)$(addprefix _,$(filter-out espeak,$(PHONEMES)))
LETTERS_de := äöüßé
LETTERS_es := áéíóúüñ
LETTERS_fr := àâæçèéêëîïôœùûüÿ
LETTERS_it := àèéìíîòóùú
DEMO_TEXT_FLAGS := $(strip --phonemes $(PHONEMES) $(if $(filter espeak,$(PHONEMES)), \
	--language $(or $(DEMO_LANGUAGE),en-us),$(if $(DEMO_LANGUAGE), \
	--cleaner basic --extra_symbols $(LETTERS_$(DEMO_LANGUAGE)))))
TEXTS := "Can you hear my new voice?" "The quick fox naps." "Hello, I learned to speak."
TEXTS_de := "Hörst du meine neue Stimme?" "Der flinke Fuchs schläft." "Hallo, ich kann jetzt sprechen."
TEXTS_es := "¿Oyes mi nueva voz?" "El zorro rápido duerme." "Hola, he aprendido a hablar."
TEXTS_fr := "Tu entends ma nouvelle voix?" "Le renard rapide dort." "Bonjour, j'ai appris à parler."
TEXTS_it := "Senti la mia nuova voce?" "La volpe veloce dorme." "Ciao, ho imparato a parlare."
DEMO_CHECKPOINT := $(DEMO)/work_dir/demo/final_checkpoint
# On sentences this short, the default's heavier guide would straighten the alignment. A run this
# short cannot afford the paper's dropout: benchmarks/recipe.md, "Judged by free running". The other
# languages have 3,000 sentences instead of 4,900.
DEMO_FLAGS := \
	--experiment_name demo --run_name demo \
	--working_directory $(DEMO)/work_dir --save_audio_gen $(DEMO)/validation \
	--path_to_train_manifest $(DEMO_CORPUS)/train_metadata.csv \
	--path_to_val_manifest $(DEMO_CORPUS)/test_metadata.csv \
	--training_epochs $(if $(DEMO_LANGUAGE),11,6) --batch_size 16 --learning_rate 0.004 --min_learning_rate 1e-4 \
	--warmup_steps 50 --short_first_epochs 0 \
	--guided_attention_weight 1 --guided_attention_sigma 0.4 --drop_frame_rate 0.5 \
	--checkpoint_epochs 5 --console_out_iters 20 --num_workers 0 --cache_mels $(DEMO_CORPUS)/mels \
	--alignment_warning_steps 500 \
	--character_embed_dim 256 --encoder_embed_dim 256 --decoder_rnn_embed_dim 512 \
	--decoder_prenet_dim 128 --attention_dim 64 --decoder_postnet_n_filters 256 \
	--encoder_dropout_p 0.1 --decoder_postnet_dropout_p 0.1 --attention_dropout_p 0 \
	--decoder_dropout_p 0 --frames_per_step 2
# Half precision saves a third of the time or more, on CPUs that multiply matrices in bfloat16.
PRECISION := $(if $(shell grep -sE "amx_bf16|avx512_bf16" /proc/cpuinfo),bf16,no)

REHEARSAL := rehearsal
REHEARSAL_STEPS ?= 1000
REHEARSAL_SENTENCES ?= 4200
REHEARSAL_FLAGS ?=

.PHONY: demo my_voice rehearsal test test_latest mutants lint lock bench bench_gpu clean

demo: $(DEMO)/report.json
	@cat $(DEMO)/report.txt
	@echo
	@echo "Look at    $(DEMO)/validation/demo/alignment.gif, $(DEMO)/validation/demo/loss.png, $(DEMO)/spoken/*.png, $(DEMO)/worst/*.png"
	@echo "Listen to  $(DEMO)/spoken/*.wav"

$(DEMO)/report.json: $(DEMO)/spoken/done
	$(BIN)/python evaluate.py --checkpoint $(DEMO_CHECKPOINT) \
		--path_to_manifest $(DEMO_CORPUS)/test_metadata.csv \
		--word_times $(DEMO_CORPUS)/corpus/word_times.json --output_json $@ \
		--output_csv $(DEMO)/clips.csv --save_worst $(DEMO)/worst > $(DEMO)/report.txt

$(DEMO)/spoken/done: $(DEMO_CHECKPOINT)/model.safetensors
	$(BIN)/python synthesize.py --checkpoint $(DEMO_CHECKPOINT) --output_dir $(DEMO)/spoken --overwrite \
		--vocoder auto --text $(TEXTS$(addprefix _,$(DEMO_LANGUAGE))) || test $$? = 2
	@touch $@

# On a CPU, two processes of one thread are faster than one process of two threads. Accelerate
# starts them only with --multi_gpu.
$(DEMO_CHECKPOINT)/model.safetensors: $(DEMO_CORPUS)/train_metadata.csv
	OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --quiet --multi_gpu \
		--num_processes 2 --num_machines 1 --mixed_precision $(PRECISION) --dynamo_backend no \
		train_taco.py $(DEMO_FLAGS) $(DEMO_TEXT_FLAGS) --overwrite

# 100 of the English 4,900 sentences are kept to measure with, or of the 3,000 in other languages.
$(DEMO_CORPUS)/train_metadata.csv: $(DEMO_CORPUS)/corpus/metadata.csv
	$(BIN)/python prep_splits.py --path_to_ljspech $(DEMO_CORPUS)/corpus \
		--path_to_save $(DEMO_CORPUS) --test_split_pct $(if $(DEMO_LANGUAGE),0.0333,0.0204)

$(DEMO_CORPUS)/corpus/metadata.csv: | $(BIN)/installed
	$(BIN)/python -m corpora.make_demo_corpus --path_to_save $(DEMO_CORPUS)/corpus $(DEMO_SPEAKER)

my_voice: | $(BIN)/installed
	CHECKPOINT="$${CHECKPOINT:-$(DEMO_CHECKPOINT)}" PATH="$(abspath $(BIN)):$$PATH" \
		bash my_voice.sh $(TEXTS$(addprefix _,$(DEMO_LANGUAGE)))

rehearsal: $(REHEARSAL)/train_metadata.csv
	$(BIN)/python -m extras.rehearsal --folder $(REHEARSAL) --steps $(REHEARSAL_STEPS) \
		--cpu_precision $(PRECISION) --train_flags="$(REHEARSAL_FLAGS)"

$(REHEARSAL)/train_metadata.csv: $(REHEARSAL)/corpus/metadata.csv
	$(BIN)/python prep_splits.py --path_to_ljspech $(REHEARSAL)/corpus --path_to_save $(REHEARSAL) \
		--test_split_pct 0.0476

$(REHEARSAL)/corpus/metadata.csv: | $(BIN)/installed
	$(BIN)/python -m corpora.make_demo_corpus --path_to_save $(REHEARSAL)/corpus \
		--n_sentences $(REHEARSAL_SENTENCES) --min_chars 12 --max_chars 187 $(SPEAKER)

test: $(BIN)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0

test_latest:
	rm -f .venv-latest/bin/installed
	$(MAKE) test VENV=.venv-latest LOCKED=no

mutants: $(BIN)/installed
	$(BIN)/python tests/mutants.py --jobs 2

bench: $(BIN)/installed
	$(BIN)/python benchmarks/train_step.py --repeats 5 --sweep 100x16 600x16 300x4 --sweep_repeats 1
	$(BIN)/python benchmarks/inference.py --n_steps 400 --repeats 5
	$(BIN)/python benchmarks/loader.py --n_clips 128

GPU_FLAGS := --output_dir benchmarks/results/gpu --device cuda

bench_gpu: $(BIN)/installed
	$(BIN)/python benchmarks/throughput.py --steps 34 --repeats 2 $(GPU_FLAGS)
	$(BIN)/python benchmarks/train_step.py --batch_size 128 --n_text 100 --n_mel 600 \
		--dtype bfloat16 --repeats 10 --sweep 300x128 900x128 600x32 $(GPU_FLAGS)
	$(BIN)/python benchmarks/inference.py --batch_size 1 16 --n_steps 400 --repeats 9 $(GPU_FLAGS)

lint: $(BIN)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

lock: $(BIN)/installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --upgrade --quiet \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		requirements/dev.txt --output-file requirements.lock

LOCK_FITS := import sys; \
	sys.exit(sys.platform != "linux" or not (3, 10) <= sys.version_info[:2] <= (3, 13))

$(BIN)/installed: requirements.lock requirements.txt $(wildcard requirements/*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ $(LOCKED) = yes ] && $(BIN)/python -c '$(LOCK_FITS)'; then set -x; \
		$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	else set -x; \
		$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager \
			-r requirements/dev.txt; \
	fi
	@touch $@

clean:
	rm -rf $(DEMO) $(DEMO_CORPUS)
