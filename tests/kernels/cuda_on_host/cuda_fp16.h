// empty on purpose: emulate.cpp has defined __half before msda.cu asks for it
