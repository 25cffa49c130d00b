// One instruction set's kernels.
#include "kernels.h"

namespace ISA {

void linear(const Linear&);
void attention(const Attention&);
void rotary(const Rotary&);
void normed(const Normed&);
void keep(const Keep&);
void expand(const Expand&);
void choose(const Choose&);
void experts(const Experts&);
void heads(const Heads&);
void spans(const Spans&);
void norm_rows(const NormRows&);
void activated_rows(const ActivatedRows&);

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
extern const Kernels kernels;
const Kernels kernels = {TEXT(ISA), linear,  attention, rotary, normed, keep,
                         expand,    choose,  experts,   heads,  spans,  norm_rows, activated_rows};

}  // namespace ISA
