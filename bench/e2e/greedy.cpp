// Greedy tokens of llama.cpp or ik_llama.cpp, to check their outputs before they are timed.
//
//   greedy MODEL.gguf THREADS REPACK VOCAB COUNT ID...      prints COUNT token ids; fails where a logit is not finite
//
// peers.sh builds it in the place of the sources' examples/simple/simple.cpp, against either project's llama.h.

#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

// The two projects name these settings differently.
template <class P> auto set_repack(P & p, bool on, int) -> decltype((void) p.use_extra_bufts) { p.use_extra_bufts = on; }
template <class P> auto set_repack(P & p, bool on, long) -> decltype((void) p.repack_tensors) { p.repack_tensors = on; }
template <class P> auto set_flash(P & p, int) -> decltype((void) p.flash_attn_type) { p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED; }
template <class P> auto set_flash(P & p, long) -> decltype((void) p.flash_attn) { p.flash_attn = true; }

int main(int argc, char ** argv) {
    if (argc < 7) {
        fprintf(stderr, "usage: %s MODEL.gguf THREADS REPACK VOCAB COUNT ID...\n", argv[0]);
        return 2;
    }
    const int threads = atoi(argv[2]), vocab = atoi(argv[4]), count = atoi(argv[5]);
    std::vector<llama_token> ids;
    for (int i = 6; i < argc; ++i) ids.push_back(atoi(argv[i]));

    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    set_repack(model_params, atoi(argv[3]) != 0, 0);
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = threads;
    set_flash(params, 0);
    llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;

    llama_batch batch = llama_batch_init((int) ids.size(), 0, 1);
    int position = 0;
    for (int step = 0; step < count; ++step) {
        batch.n_tokens = (int) ids.size();
        for (size_t i = 0; i < ids.size(); ++i) {
            batch.token[i] = ids[i];
            batch.pos[i] = position++;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = i + 1 == ids.size();
        }
        if (llama_decode(context, batch) != 0) return 1;
        const float * logits = llama_get_logits_ith(context, batch.n_tokens - 1);
        int best = 0;
        for (int i = 0; i < vocab; ++i) {
            if (!std::isfinite(logits[i])) return 1;
            if (logits[i] > logits[best]) best = i;
        }
        printf("%d%c", best, step + 1 == count ? '\n' : ' ');
        ids.assign(1, best);
    }
    return 0;
}
