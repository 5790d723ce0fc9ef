// Argument checks. A failed check throws std::invalid_argument, which Python sees as ValueError naming the argument.
#pragma once

#include <sstream>
#include <stdexcept>

namespace seedthink {

template <typename... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace seedthink

#define ST_CHECK(condition, ...)                       \
  do {                                                 \
    if (!(condition)) ::seedthink::fail(__VA_ARGS__);  \
  } while (0)
