// empty on purpose: emulate.cpp has defined __nv_bfloat16 before msda.cu asks for it
