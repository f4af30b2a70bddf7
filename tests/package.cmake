# Installs the build, moves the prefix, and has the project in tests/package find, build and run
# against it. Then the same project takes the source tree in by add_subdirectory: configured only.
set(work ${BUILD}/package)
file(REMOVE_RECURSE ${work})

function(step)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(failed)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}: ${failed}\n${output}")
  endif()
endfunction()

step(${CMAKE_COMMAND} --install ${BUILD} --config ${CONFIG} --component ebb --prefix ${work}/here)
file(RENAME ${work}/here ${work}/there)
set(configure ${CMAKE_COMMAND} -S ${SOURCE}/tests/package -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=${CONFIG})
step(${configure} -B ${work}/build -DCMAKE_PREFIX_PATH=${work}/there
     -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
step(${CMAKE_COMMAND} --build ${work}/build --config ${CONFIG})
step(${work}/build/descend)
file(GLOB_RECURSE cmake_files ${work}/there/*.cmake)
foreach(path IN LISTS cmake_files)
  file(STRINGS ${path} lines REGEX "${SOURCE}|${work}/here")
  if(lines)
    message(FATAL_ERROR "${path} names the place it was built in: ${lines}")
  endif()
endforeach()
step(${configure} -B ${work}/subproject -DEBB_SOURCE=${SOURCE} -DEBB_CUDA=OFF)
file(REMOVE_RECURSE ${work})
