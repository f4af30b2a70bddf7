# Decides whether the CUDA kernels are built, for which architectures, and says so and why.
# Sets EBB_CUDA_ENABLED; ebb_add_cuda(target) adds the kernels to the library.

set(EBB_CUDA_ENABLED OFF CACHE INTERNAL "whether this build has the CUDA kernels")
if(NOT EBB_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "EBB_CUDA: got '${EBB_CUDA}'; expected AUTO, ON or OFF")
endif()
if(EBB_CUDA STREQUAL "OFF")
  message(STATUS "ebb: CPU only, because EBB_CUDA=OFF")
  return()
endif()

# The compiler that the user named; else the one on PATH; else where the toolkit installs itself.
find_program(EBB_NVCC NAMES ${CMAKE_CUDA_COMPILER} $ENV{CUDACXX} nvcc
             HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
mark_as_advanced(EBB_NVCC)

# Sets `problem` to what keeps this nvcc from building the kernels: shown by AUTO, raised by ON.
function(ebb_check_nvcc)
  set(problem "" PARENT_SCOPE)
  if(NOT EBB_NVCC)
    set(problem "no nvcc was found" PARENT_SCOPE)
    return()
  endif()
  if(EBB_NVCC STREQUAL "${EBB_NVCC_WORKS}")
    return()
  endif()
  set(probe ${PROJECT_BINARY_DIR}/CMakeFiles/ebb_nvcc)
  file(WRITE ${probe}.cu "#include <concepts>\n#include <cublasLt.h>\n"
                         "template <std::integral T> __global__ void f(T) {}\n"
                         "void g() { f<<<1, 1>>>(1); }\n")
  execute_process(COMMAND ${EBB_NVCC} -std=c++20 -c ${probe}.cu -o ${probe}.o
                  RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    string(REGEX MATCH "[^\n]*([Ee]rror|fatal)[^\n]*" reason "${output}")
    set(problem "${EBB_NVCC} cannot build C++20 with this host compiler and cuBLAS (CUDA 12 or newer is needed): ${reason}"
        PARENT_SCOPE)
  else()
    set(EBB_NVCC_WORKS ${EBB_NVCC} CACHE INTERNAL "the nvcc that passed the check")
  endif()
endfunction()

# Sets `architectures` to what to build for when the user does not say: this machine's GPU; where
# none answers, or one that this nvcc does not know, the oldest, the common and the newest family
# that the kernels have code for, with PTX for those to come.
function(ebb_choose_architectures)
  set(architectures 75-real 80-real 90a-real 90-virtual)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  RESULT_VARIABLE failed OUTPUT_VARIABLE capability ERROR_QUIET)
  execute_process(COMMAND ${EBB_NVCC} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
  if(failed EQUAL 0 AND capability MATCHES "^([0-9]+)\\.([0-9])"
     AND known MATCHES "compute_${CMAKE_MATCH_1}${CMAKE_MATCH_2}\n")
    string(REGEX REPLACE "^([0-9]+)\\.([0-9]).*" "\\1\\2" architectures "${capability}")
    string(REGEX REPLACE "^90$" "90a" architectures ${architectures})  # Hopper's own instructions
  endif()
  set(architectures ${architectures} PARENT_SCOPE)
endfunction()

ebb_check_nvcc()
if(problem AND EBB_CUDA STREQUAL "ON")
  message(FATAL_ERROR "EBB_CUDA=ON, but ${problem}\nInstall the CUDA Toolkit "
                      "(https://developer.nvidia.com/cuda-downloads) and put its nvcc on PATH or "
                      "in $CUDACXX; or configure with -DEBB_CUDA=OFF for the CPU alone.")
elseif(problem)
  message(STATUS "ebb: CPU only, because ${problem}")
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT "$ENV{CUDAARCHS}" STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES $ENV{CUDAARCHS})
elseif(NOT CMAKE_CUDA_ARCHITECTURES)
  ebb_choose_architectures()
  set(CMAKE_CUDA_ARCHITECTURES ${architectures} CACHE STRING "GPU architectures to build for" FORCE)
endif()
set(CMAKE_CUDA_COMPILER ${EBB_NVCC})
enable_language(CUDA)
find_package(CUDAToolkit 12 REQUIRED)
set(EBB_CUDA_ENABLED ON CACHE INTERNAL "whether this build has the CUDA kernels")
message(STATUS "ebb: CPU and CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}, "
               "with ${EBB_NVCC}")

# How every .cu file of a target is compiled, here and in the examples.
function(ebb_cuda_options target)
  # CMake 3.25 does not know how to ask nvcc 13 for C++20; the flag itself is all it takes.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20
    --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra -Xcudafe=--display_error_number>)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD_REQUIRED OFF CUDA_RUNTIME_LIBRARY Shared)
endfunction()

function(ebb_add_cuda target)
  file(GLOB kernels CONFIGURE_DEPENDS core/*.cu ops/*.cu ops/*/*.cu nn/*.cu)
  target_sources(${target} PRIVATE ${kernels})
  ebb_cuda_options(${target})
  target_link_libraries(${target} PUBLIC CUDA::cudart PRIVATE CUDA::cublas CUDA::cublasLt)
endfunction()
