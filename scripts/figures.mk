# Runs of `make figures`, made by `python -m dejavubench.analysis.reference makefile`.
FIGURES := fig2 appendix_a fig7 fig25 tails

RANKS_fig2 := 1
QUICK_fig2 := --rounds 3 --model gpt2,opt-125m --input-len 32,128 --output-len 8

RANKS_appendix_a := 1
QUICK_appendix_a := --rounds 3 --model gpt2 --ubatch-size 1,2,4 --input-len 32,64,128 --output-len 8

RANKS_fig7 := 2
QUICK_fig7 := --rounds 6 --kv-layout ft,hnd --ubatch-size 1 --input-len 64 --output-len 8

RANKS_fig25 := 2
QUICK_fig25 := --rounds 6 --ubatch-size 2 --input-len 128 --output-len 16

RANKS_tails := 2
QUICK_tails := --rounds 6 --ubatch-size 1 --input-len 64 --output-len 48
