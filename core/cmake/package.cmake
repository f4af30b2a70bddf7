# The public headers, <ebb/ebb.h> which includes them all, and what cmake --install lays down.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

file(GLOB public_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}
     core/*.h ops/*.h ops/*/*.h nn/*.h)
# A header with a line that begins with "// Internal" is for our own sources.
foreach(header IN LISTS public_headers)
  file(STRINGS ${header} internal REGEX "^// Internal")
  if(internal)
    list(REMOVE_ITEM public_headers ${header})
  endif()
endforeach()

# "ebb/core/tensor.h" is core/tensor.h of this tree.
set(include_dir ${PROJECT_BINARY_DIR}/include)
file(MAKE_DIRECTORY ${include_dir}/ebb)
foreach(layer core ops nn)
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${layer} ${include_dir}/ebb/${layer} SYMBOLIC)
endforeach()
list(TRANSFORM public_headers REPLACE "(.+)" "#include \"ebb/\\1\"" OUTPUT_VARIABLE include_lines)
list(JOIN include_lines "\n" include_lines)
file(CONFIGURE OUTPUT ${include_dir}/ebb/ebb.h @ONLY CONTENT
"// ebb @PROJECT_VERSION@: every public header. Written by CMake from what the tree holds.
#pragma once
@include_lines@
")
target_include_directories(ebb PUBLIC $<BUILD_INTERFACE:${include_dir}>
                                      $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

foreach(header IN LISTS public_headers)
  cmake_path(GET header PARENT_PATH folder)
  install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ebb/${folder} COMPONENT ebb)
endforeach()
install(FILES ${include_dir}/ebb/ebb.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ebb COMPONENT ebb)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT ebb)
install(TARGETS ebb EXPORT ebbTargets COMPONENT ebb)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ebb)
install(EXPORT ebbTargets NAMESPACE ebb:: DESTINATION ${config_dir} COMPONENT ebb)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/ebbConfig.cmake.in
  ${PROJECT_BINARY_DIR}/ebbConfig.cmake INSTALL_DESTINATION ${config_dir}
  NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ebbConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ebbConfig.cmake ${PROJECT_BINARY_DIR}/ebbConfigVersion.cmake
        DESTINATION ${config_dir} COMPONENT ebb)
